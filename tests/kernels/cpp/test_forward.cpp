// fgd::cpu::forward against the loss as it is written down.
#include <cmath>

#include "isa.h"
#include "problem.h"

namespace {

void expect_terms(const problem::Problem& p, const problem::Problem::Saved& saved) {
  const double tolerance = p.sums == fgd::kFloat64 ? 1e-12 : 2e-5;
  const reference::Vector got = p.vector(saved.terms);
  for (size_t level = 0; level < p.batch.levels.size(); ++level) {
    std::array<double, reference::kTerms> want{};
    if (p.c.images > 0) want = reference::terms(p.batch, p.batch.levels[level]);
    for (int k = 0; k < reference::kTerms; ++k) {
      const double value = got[level * reference::kTerms + k];
      // Attentions of one pixel and one channel are 1: what is left of a distance between them is rounding.
      CHECK(std::fabs(value - want[k]) <= tolerance * (std::fabs(want[k]) + 1e-2),
            "%s, level %zu, term %d: %.9g, not %.9g", p.c.name.c_str(), level, k, value, want[k]);
    }
  }
}

// Softmaxes over the pixels of an image are weights: none below 0, and together 1.
void expect_softmaxes(const problem::Problem& p, const problem::Problem::Saved& saved) {
  const reference::Vector maps = p.vector(saved.maps);
  size_t at = 0;
  for (const reference::Level& level : p.batch.levels)
    for (int n = 0; n < p.c.images; ++n, at += fgd::kMaps * level.pixels())
      for (int map : {fgd::kMapContextS, fgd::kMapContextT}) {
        double sum = 0;
        for (int i = 0; i < level.pixels(); ++i) {
          const double q = maps[at + map * level.pixels() + i];
          CHECK(q >= 0, "%s: weight %g", p.c.name.c_str(), q);
          sum += q;
        }
        CHECK(std::fabs(sum - 1) < 1e-5, "%s: softmax %d of image %d sums to %.9g", p.c.name.c_str(), map, n, sum);
      }
}

}  // namespace

int main() {
  if (const int skipped = isa::skipped()) return skipped;
  for (const problem::Case& c : problem::all_cases()) {
    const problem::Problem p(c);
    const problem::Problem::Saved saved = p.forward(problem::serial());
    expect_terms(p, saved);
    expect_softmaxes(p, saved);
  }
  return check::result("forward");
}
