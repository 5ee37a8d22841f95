// The reference of the other tests against itself: its gradients are those of its loss, by central differences.
#include <cmath>

#include "problem.h"

namespace {

double loss(const reference::Batch& batch, const reference::Level& level) {
  const auto upstream = problem::Problem::upstream();
  const auto terms = reference::terms(batch, level);
  double sum = 0;
  for (int k = 0; k < reference::kTerms; ++k) sum += upstream[k] * terms[k];
  return sum;
}

// `input` is a part of `level`.
void expect_gradient(const char* name, const reference::Batch& batch, const reference::Level& level,
                     reference::Vector& input, const reference::Vector& gradient) {
  CHECK(input.size() == gradient.size(), "%s: %zu numbers for %zu", name, gradient.size(), input.size());
  const double step = 1e-5;
  for (size_t i = 0; i < input.size(); ++i) {
    const double kept = input[i];
    input[i] = kept + step;
    const double above = loss(batch, level);
    input[i] = kept - step;
    const double want = (above - loss(batch, level)) / (2 * step);
    input[i] = kept;
    CHECK(std::fabs(gradient[i] - want) < 1e-7 * (1 + std::fabs(want)), "%s[%zu]: %.9g, by differences %.9g", name, i,
          gradient[i], want);
  }
}

}  // namespace

int main() {
  problem::Case c;
  c.levels = {{8, 5, 4}};
  c.images = 3;
  c.student = c.teacher = fgd::kFloat64;
  problem::Problem p(c);
  reference::Level& level = p.batch.levels[0];
  const reference::Gradients g = reference::gradients(p.batch, level, problem::Problem::upstream());
  expect_gradient("student", p.batch, level, level.feature[0], g.student.value);
  for (int net = 0; net < 2; ++net)
    for (int i = 0; i < reference::kNetTensors; ++i) {
      const std::string name = "net " + std::to_string(net) + " tensor " + std::to_string(i);
      expect_gradient(name.c_str(), p.batch, level, level.net[net].tensor[i], g.net[net][i].value);
    }
  return check::result("reference");
}
