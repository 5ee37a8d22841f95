// One thread and four: the same bits in everything that comes out.
#include "isa.h"
#include "problem.h"

int main() {
  if (const int skipped = isa::skipped()) return skipped;
  for (const problem::Case& c : problem::all_cases()) {
    if (c.levels[0].channels > 1000) continue;
    const problem::Problem p(c);
    const problem::Problem::Saved one = p.forward(problem::serial()), four = p.forward(problem::threaded());
    CHECK(one.terms == four.terms, "%s: terms", c.name.c_str());
    CHECK(one.maps == four.maps, "%s: maps", c.name.c_str());
    CHECK(one.stats == four.stats, "%s: stats", c.name.c_str());
    if (c.images == 0) continue;
    const problem::Gradients a = p.backward(problem::serial(), one, true, c.gc);
    const problem::Gradients b = p.backward(problem::threaded(), one, true, c.gc);
    CHECK(a.student == b.student, "%s: the student's gradient", c.name.c_str());
    CHECK(a.gc == b.gc, "%s: the GcBlocks' gradients", c.name.c_str());
  }
  return check::result("threads");
}
