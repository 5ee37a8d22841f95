// fgd::cpu::backward against the gradients as they are written down, and with parts of them not asked for.
#include <cmath>

#include "isa.h"
#include "problem.h"

namespace {

using fgd::DType;

// Half a unit in the last place, relative; and of the smallest number.
double rounding(DType type) { return type == fgd::kFloat16 ? 0x1p-11 : type == fgd::kBFloat16 ? 0x1p-8 : 0; }
double smallest(DType type) { return type == fgd::kFloat16 ? 0x1p-25 : 0; }

void expect_close(const std::string& name, const reference::Vector& got, const reference::Gradient& want,
                  double tolerance, DType type) {
  CHECK(got.size() == want.value.size(), "%s: %zu numbers, not %zu", name.c_str(), got.size(), want.value.size());
  for (size_t i = 0; i < got.size(); ++i) {
    const double allowed = 1.01 * (rounding(type) * std::fabs(want.value[i]) + smallest(type)) + tolerance * want.scale;
    CHECK(std::fabs(got[i] - want.value[i]) <= allowed, "%s[%zu]: %.9g, not %.9g, allowed %.3g", name.c_str(), i,
          got[i], want.value[i], allowed);
  }
}

void expect_gradients(const problem::Problem& p, const problem::Gradients& got) {
  const double tolerance = p.sums == fgd::kFloat64 ? 1e-12 : 2e-5;
  for (int l = 0; l < static_cast<int>(p.batch.levels.size()); ++l) {
    const reference::Level& level = p.batch.levels[l];
    const reference::Gradients want = reference::gradients(p.batch, level, problem::Problem::upstream());
    const std::string name = p.c.name + ", level " + std::to_string(l);
    expect_close(name + ", student", p.student_gradient(got, l), want.student, tolerance, p.c.student);
    for (int net = 0; p.c.gc && net < 2; ++net)
      for (int i = 0; i < reference::kNetTensors; ++i) {
        const auto& buffer = got.gc[l * fgd::kGcTensors + problem::Problem::gc_index(net, i)];
        expect_close(name + ", net " + std::to_string(net) + ", tensor " + std::to_string(i), p.vector(buffer),
                     want.net[net][i], tolerance, p.sums);
      }
  }
}

// What is not asked for does not change the rest.
void expect_parts(const problem::Problem& p, const problem::Problem::Saved& saved, const problem::Gradients& all) {
  const problem::Gradients student = p.backward(problem::serial(), saved, true, false);
  CHECK(student.student == all.student, "%s: frozen GcBlocks change the student's gradient", p.c.name.c_str());
  const problem::Gradients gc = p.backward(problem::serial(), saved, false, true);
  CHECK(gc.gc == all.gc, "%s: a fixed student changes the GcBlocks' gradients", p.c.name.c_str());
  p.backward(problem::serial(), saved, false, false);
}

}  // namespace

int main() {
  if (const int skipped = isa::skipped()) return skipped;
  for (const problem::Case& c : problem::all_cases()) {
    if (c.images == 0) continue;  // an average over no image: the operator does not call
    const problem::Problem p(c);
    const problem::Problem::Saved saved = p.forward(problem::serial());
    const problem::Gradients all = p.backward(problem::serial(), saved, true, c.gc);
    expect_gradients(p, all);
    if (c.gc) expect_parts(p, saved, all);
  }
  return check::result("backward");
}
