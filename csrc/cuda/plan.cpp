#include "plan.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <mutex>
#include <utility>

namespace fgd::cuda {

static int size_of(DType type) { return type == kFloat64 ? 8 : type == kFloat32 ? 4 : 2; }

// Hands out parts of one allocation; from null it only counts.
class Scratch {
 public:
  explicit Scratch(void* base) : base_(reinterpret_cast<uintptr_t>(base)) {}
  void* take(int64_t bytes) {
    const uintptr_t at = base_ + used_;
    used_ += (static_cast<size_t>(bytes) + 255) / 256 * 256;
    return reinterpret_cast<void*>(at);
  }
  size_t used() const { return used_; }

 private:
  uintptr_t base_;
  size_t used_ = 0;
};

int alignment_of(const Features& f, int channels, DType type, Layout layout) {
  const bool nchw = layout == kPixelsDense;
  const int64_t row = nchw ? f.channel : f.pixel, run = nchw ? 0 : channels;
  const uint64_t bits =
      reinterpret_cast<uintptr_t>(f.data) | static_cast<uint64_t>((row | f.image | run) * size_of(type));
  return static_cast<int>(16 | bits) & -static_cast<int>(16 | bits);
}

static int64_t pixels_of_all(const Pyramid& p) {
  int64_t pixels = 0;
  for (const LevelInput& level : p.levels) pixels += level.pixels();
  return pixels;
}

int64_t maps_size(const Pyramid& p) { return kMaps * p.images * pixels_of_all(p); }

int64_t stats_size(const Pyramid& p) {
  int64_t channels = 0;
  for (const LevelInput& level : p.levels) channels += level.channels;
  return kStats * p.images * channels;
}

// ---- which kernel, and how large its chunks ------------------------------------------------------------------------

static int variant_of(const Pyramid& p, const LevelInput& level) {
  if (p.wide()) return kGeneric + 1;
  const bool nchw = level.layout == kPixelsDense;
  if (level.channels <= kFastChannels) return (nchw ? kNchw : kNhwc) + 3 * p.student_type + p.teacher_type;
  if (p.student_type != p.teacher_type) return kGeneric;
  if (!nchw) return kNhwcWide + p.student_type;
  return (level.channels <= 512 ? kNchw512 : level.channels <= 1024 ? kNchw1024 : kNchw2048) + p.student_type;
}

static bool is_generic(int variant) { return variant == kGeneric || variant == kGeneric + 1; }
static bool any_float32(const Pyramid& p) { return p.student_type == kFloat32 || p.teacher_type == kFloat32; }
static bool only_float32(const Pyramid& p) { return p.student_type == kFloat32 && p.teacher_type == kFloat32; }

static int tile_pixels(const Pyramid& p, const LevelInput& level, int variant) {
  if (variant >= kNhwcWide)  // as in nhwc_wide.cuh
    return 32 / blocks_of(level.channels, 64) * (p.student_type == kFloat32 ? 2 : 4);
  if (variant >= kNhwc && variant < kGeneric) return 64;
  if (is_generic(variant)) return 32;
  return (any_float32(p) ? 16 : 32) / (variant >= kNchw1024 ? 2 : 1);
}

// How long the device is busy with blocks that start in order, each as soon as a multiprocessor is free:
// multiprocessors that get free at one time are one entry, since blocks come in groups of equal length.
class Schedule {
 public:
  explicit Schedule(int multiprocessors) : all_(multiprocessors), free_{{0, multiprocessors}} {}
  void add(int64_t blocks, int64_t length) {
    const int64_t rounds = blocks / all_;  // each multiprocessor gets as many
    for (Free& f : free_) f.time += rounds * length;
    for (int64_t left = blocks - rounds * all_; left > 0;) {
      const Free first = free_.front();
      const int64_t taken = std::min(left, first.multiprocessors);
      free_.front().multiprocessors -= taken;
      if (taken == first.multiprocessors) free_.erase(free_.begin());
      insert({first.time + length, taken});
      left -= taken;
    }
  }
  int64_t end() const { return free_.back().time; }

 private:
  struct Free {
    int64_t time, multiprocessors;
  };
  void insert(const Free& f) {
    auto at =
        std::lower_bound(free_.begin(), free_.end(), f, [](const Free& a, const Free& b) { return a.time < b.time; });
    if (at != free_.end() && at->time == f.time)
      at->multiprocessors += f.multiprocessors;
    else
      free_.insert(at, f);
  }
  int64_t all_;
  std::vector<Free> free_;  // in the order of time
};

struct Cut {
  int chunk_pixels, chunks;  // of an image
  bool operator==(const Cut& other) const { return chunk_pixels == other.chunk_pixels; }
};

// Equal shares of an image, in whole tiles.
static Cut cut_into_chunks(int64_t pixels, int tile, int chunk_pixels) {
  const int chunks = blocks_of(pixels, std::min(std::max(chunk_pixels, tile), kMaxChunkPixels / tile * tile));
  const int equal = blocks_of(blocks_of(pixels, chunks), tile) * tile;
  return {equal, blocks_of(pixels, equal)};
}

// What a pixel costs by the way that it is read, in percent of one read by packets; by the model of
// devtools/offline/sass_model.py for sm_90, and at least what memory takes. test_plan.py holds them against it.
struct Costs {
  int words, shifted, elements;
};
static Costs costs_of(bool backward, bool words) {  // words: elements have four bytes
  if (words) return backward ? Costs{100, 100, 100} : Costs{110, 110, 110};
  return backward ? Costs{100, 125, 190} : Costs{122, 162, 240};
}
constexpr int kPacketCost = 100;

// What decides how a level is cut: its pixels and what they cost, those of an image's last tile apart.
struct Work {
  int64_t pixels;
  int tile, cost, last_cost;
  bool operator==(const Work& other) const {
    return pixels == other.pixels && tile == other.tile && cost == other.cost && last_cost == other.last_cost;
  }
  int64_t length(int64_t first, int64_t count) const {  // of a block
    constexpr int kOverhead = 64 * kPacketCost;         // its beginning and end
    const int64_t rest = first + count > pixels ? pixels - first : count, tiles = rest / tile;
    return kOverhead + tiles * tile * cost + (rest > tiles * tile ? int64_t{tile} * last_cost : 0);
  }
};

// As nchw.cuh and nhwc.cuh choose how to read.
static Work work_of(const Pyramid& p, const LevelInput& level, bool backward) {
  const int variant = variant_of(p, level), alignment = std::min(level.student.alignment, level.teacher.alignment);
  Work work{level.pixels(), tile_pixels(p, level, variant), kPacketCost, kPacketCost};
  if (is_generic(variant)) return work;
  const Costs costs = costs_of(backward, only_float32(p));
  const bool nchw = level.layout == kPixelsDense, words = only_float32(p) || alignment >= 4;
  if (alignment < 16) work.cost = !nchw ? costs.elements : words ? costs.words : costs.shifted;
  const bool pairs = words && (only_float32(p) || work.pixels % 2 == 0);
  work.last_cost = !nchw ? work.cost : pairs ? costs.words : costs.elements;
  return work;
}

// When the last block is done; the slowest levels go first.
static int64_t end_of(const std::vector<Work>& levels, const std::vector<Cut>& cuts, int images, int multiprocessors) {
  struct Blocks {
    int64_t full, last, chunks;
    bool operator<(const Blocks& other) const { return full > other.full; }
  };
  constexpr int kExactImages = 8;
  std::vector<Blocks> order;
  for (size_t l = 0; l < levels.size(); ++l) {
    const int64_t chunk = cuts[l].chunk_pixels, chunks = cuts[l].chunks;
    order.push_back({levels[l].length(0, chunk), levels[l].length((chunks - 1) * chunk, chunk), chunks});
  }
  std::stable_sort(order.begin(), order.end());
  Schedule schedule(multiprocessors);
  const int groups = images <= kExactImages ? images : 1;  // image after image, as blocks start; or as if all were one
  for (const Blocks& b : order)
    for (int i = 0; i < groups; ++i) {
      schedule.add(images / groups * (b.chunks - 1), b.full);
      schedule.add(images / groups, b.last);
    }
  return schedule.end();
}

// No block longer than `longest`, if it has more than one tile.
static std::vector<Cut> cuts_for(const std::vector<Work>& levels, int64_t longest) {
  std::vector<Cut> cuts;
  for (const Work& level : levels) {
    const int64_t tiles = (longest - level.length(0, 0)) / (level.cost * level.tile);
    const int chunk = static_cast<int>(std::min<int64_t>(std::max<int64_t>(tiles, 1) * level.tile, kMaxChunkPixels));
    cuts.push_back(cut_into_chunks(level.pixels, level.tile, chunk));
  }
  return cuts;
}

// Levels one by one get a few chunks more or less, as long as that helps.
static void refine(const std::vector<Work>& levels, int images, int multiprocessors, std::vector<Cut>& cuts) {
  int64_t best = end_of(levels, cuts, images, multiprocessors);
  for (int round = 0; round < 4; ++round) {
    const int64_t before = best;
    for (size_t l = 0; l < levels.size(); ++l)
      for (int more : {-2, -1, 1, 2}) {
        std::vector<Cut> other = cuts;
        const int chunks = cuts[l].chunks + more;
        if (chunks < 1 || blocks_of(levels[l].pixels, chunks) > kMaxChunkPixels) continue;
        other[l] = cut_into_chunks(levels[l].pixels, levels[l].tile, blocks_of(levels[l].pixels, chunks));
        const int64_t end = end_of(levels, other, images, multiprocessors);
        if (end < best) best = end, cuts = other;
      }
    if (best == before) return;
  }
}

// The fewest blocks, whose sums take the least memory, of those that are done soon enough.
static std::vector<Cut> search_cuts(const std::vector<Work>& levels, int images, int multiprocessors) {
  constexpr int64_t kLeast = 192 * kPacketCost, kMost = 2304 * kPacketCost, kStep = 16 * kPacketCost;
  std::vector<std::pair<int64_t, std::vector<Cut>>> found;  // when it ends
  for (int64_t longest = kMost; longest >= kLeast; longest -= kStep) {
    std::vector<Cut> cuts = cuts_for(levels, longest);
    if (!found.empty() && found.back().second == cuts) continue;
    found.emplace_back(end_of(levels, cuts, images, multiprocessors), cuts);
  }
  for (size_t i = 0, count = found.size(); i < count; ++i) {
    std::vector<Cut> cuts = found[i].second;
    refine(levels, images, multiprocessors, cuts);
    found.emplace_back(end_of(levels, cuts, images, multiprocessors), cuts);
  }
  int64_t soonest = found.front().first;
  for (const auto& [end, cuts] : found) soonest = std::min(soonest, end);
  auto blocks = [](const std::vector<Cut>& cuts) {
    int64_t sum = 0;
    for (const Cut& cut : cuts) sum += cut.chunks;
    return sum;
  };
  const std::vector<Cut>* best = nullptr;
  // One or two images leave about as many sums as there are multiprocessors, beside few features: fewer blocks are
  // worth some time there, and small tiles leave more to choose from.
  const int64_t slack = images > 2 ? 3 : images == 1 ? 10 : levels.front().tile < 32 ? 4 : 1;  // percent
  for (const auto& [end, cuts] : found)
    if (end * 100 <= soonest * (100 + slack) && (!best || blocks(cuts) < blocks(*best))) best = &cuts;
  return *best;
}

// The cuts of every level. A training asks for the same ones in every pass of every step: the last few are kept.
static std::vector<Cut> cuts_of(const Pyramid& p, int multiprocessors, bool backward) {
  struct Kept {
    std::vector<Work> levels;
    int images, multiprocessors;
    std::vector<Cut> cuts;
  };
  constexpr size_t kKept = 32;
  static std::mutex mutex;
  static std::deque<Kept> kept;
  std::vector<Work> levels;
  for (const LevelInput& level : p.levels) levels.push_back(work_of(p, level, backward));
  const std::lock_guard<std::mutex> lock(mutex);
  for (const Kept& k : kept)
    if (k.images == p.images && k.multiprocessors == multiprocessors && k.levels == levels) return k.cuts;
  if (kept.size() == kKept) kept.pop_back();
  kept.push_front({levels, p.images, multiprocessors, search_cuts(levels, p.images, multiprocessors)});
  return kept.front().cuts;
}

// ---- parameters ----------------------------------------------------------------------------------------------------

static const char* at(const void* base, int64_t numbers, int size) {
  return static_cast<const char*>(base) + numbers * size;
}

// Up to kMaxLevels levels from `first` on; the pointers into maps and stats.
static PyramidParams params_of(const Pyramid& p, size_t first, const void* maps, const void* stats,
                               const std::vector<Cut>& cuts) {
  const int number = p.wide() ? 8 : 4;
  PyramidParams out;
  std::memset(static_cast<void*>(&out), 0, sizeof(out));
  out.level_count = static_cast<int>(std::min<size_t>(kMaxLevels, p.levels.size() - first));
  out.images = p.images;
  out.student_type = p.student_type;
  out.teacher_type = p.teacher_type;
  out.boxes = p.boxes;
  out.box_count = p.box_count;
  out.box_offsets = p.box_offsets;
  out.image_sizes = p.image_sizes;
  out.spatial_temperature = p.spatial_temperature;
  out.channel_temperature = p.channel_temperature;
  int64_t pixels = 0, channels = 0;
  for (size_t l = 0; l < first; ++l) pixels += p.levels[l].pixels(), channels += p.levels[l].channels;
  for (int l = 0; l < out.level_count; ++l) {
    const LevelInput& in = p.levels[first + l];
    Level& level = out.levels[l];
    level.student = in.student;
    level.teacher = in.teacher;
    level.mask = in.mask;
    level.channels = in.channels;
    level.height = in.height;
    level.width = in.width;
    level.pixels = static_cast<int>(in.pixels());
    level.maps = const_cast<char*>(at(maps, kMaps * p.images * pixels, number));
    level.stats = const_cast<char*>(at(stats, kStats * p.images * channels, number));
    if (p.has_gc_block) level.key_s = in.gc_block[kGcKeyS], level.key_t = in.gc_block[kGcKeyT];
    for (int k = 0; k < kTerms; ++k) level.weights[k] = in.weights[k] / p.images;
    level.chunk_pixels = cuts[first + l].chunk_pixels;
    level.chunks = cuts[first + l].chunks;
    pixels += in.pixels();
    channels += in.channels;
  }
  return out;
}

static GcParams gc_params_of(const Pyramid& p, size_t first, const PyramidParams& levels, const void* upstream) {
  GcParams out;
  std::memset(static_cast<void*>(&out), 0, sizeof(out));
  out.level_count = levels.level_count;
  out.images = p.images;
  out.student_type = p.student_type;
  out.teacher_type = p.teacher_type;
  out.upstream = upstream;
  for (int l = 0; l < out.level_count; ++l) {
    const LevelInput& in = p.levels[first + l];
    GcLevel& level = out.levels[l];
    std::copy(in.gc_block, in.gc_block + kGcTensors, level.tensors);
    level.student = in.student;
    level.teacher = in.teacher;
    level.channels = in.channels;
    level.pixels = levels.levels[l].pixels;
    level.chunks = levels.levels[l].chunks;
    std::copy(in.gc_hidden, in.gc_hidden + kGcNets, level.hidden);
    level.stats = levels.levels[l].stats;
    level.weight = levels.levels[l].weights[kGlobal];
  }
  return out;
}

// ---- launches ------------------------------------------------------------------------------------------------------

template <class Params>
static void add_launch(Plan& plan, std::list<Params>& kept, int step, int variant, int64_t blocks,
                       const Params& params) {
  kept.push_back(params);
  plan.launches.push_back({step, variant, blocks, &kept.back(), sizeof(params)});
}

// The pass over features: one launch a kernel, which is one in all unless levels differ in layout or width. Levels with
// slow blocks go first, so that none is left alone at the end.
static void add_tile_launches(Plan& plan, const Pyramid& p, size_t first, int step, const PyramidParams& params) {
  for (int variant = 0; variant < kTileVariants; ++variant) {
    std::vector<std::pair<int64_t, int>> order;  // how long a block takes, and the level
    for (int l = 0; l < params.level_count; ++l)
      if (variant_of(p, p.levels[first + l]) == variant)
        order.emplace_back(-work_of(p, p.levels[first + l], step == kBackward).length(0, params.levels[l].chunk_pixels),
                           l);
    std::sort(order.begin(), order.end());
    PyramidParams mine = params;
    mine.level_count = 0;
    int64_t blocks = 0;
    for (const auto& [length, l] : order) {
      Level& level = mine.levels[mine.level_count++];
      level = params.levels[l];
      level.first_block = static_cast<int>(blocks);
      blocks += int64_t{p.images} * level.chunks;
    }
    if (mine.level_count == 0) continue;
    add_launch(plan, plan.pyramids, step, variant, blocks, mine);
  }
}

// Numbers the blocks of a GcBlock kernel, blocks(level) of each level; returns how many there are.
template <class F>
static int64_t number_blocks(GcParams& params, const F& blocks_of_level) {
  int64_t blocks = 0;
  for (int l = 0; l < params.level_count; ++l) {
    params.levels[l].first_block = static_cast<int>(blocks);
    blocks += blocks_of_level(params.levels[l]);
  }
  return blocks;
}

template <class F>
static void add_gc_launch(Plan& plan, int step, int variant, GcParams params, const F& blocks_of_level) {
  const int64_t blocks = number_blocks(params, blocks_of_level);
  add_launch(plan, plan.gc_blocks, step, variant, blocks, params);
}

static void add_merge_launches(Plan& plan, const Pyramid& p, int variant, const PyramidParams& params,
                               const GcParams& gc) {
  int64_t merge = 0, finish = 0, hidden = 0;
  FinishParams to;
  std::memset(static_cast<void*>(&to), 0, sizeof(to));
  to.pyramid = params;
  for (int l = 0; l < params.level_count; ++l) {
    const Level& level = params.levels[l];
    const int pixels = blocks_of(level.pixels, kMergePixels);
    merge += int64_t{params.images} * (pixels + blocks_of(int64_t{kSums} * level.channels, kMergeColumns));
    finish += int64_t{params.images} * (pixels + 1);
    to.gc[l].first_block = static_cast<int>(hidden);
    for (int net = 0; p.has_gc_block && net < kGcNets; ++net) {
      to.gc[l].w1[net] = gc.levels[l].tensors[gc_tensor(net, kGcW1S)];
      to.gc[l].b1[net] = gc.levels[l].tensors[gc_tensor(net, kGcB1S)];
      to.gc[l].hidden_sums[net] = gc.levels[l].hidden_sums[net];
      to.gc[l].hidden[net] = gc.levels[l].hidden[net];
      hidden += gc_row_blocks(gc.levels[l].hidden[net], params.images);
    }
  }
  to.pyramid_blocks = static_cast<int>(finish);
  add_launch(plan, plan.pyramids, kMerge, variant, merge, params);
  add_launch(plan, plan.finishes, kFinish, variant, finish + hidden, to);
}

static TermsParams terms_params_of(const Pyramid& p, size_t first, const PyramidParams& params, const GcParams& gc,
                                   const ForwardOutput& out) {
  TermsParams terms;
  std::memset(static_cast<void*>(&terms), 0, sizeof(terms));
  terms.level_count = params.level_count;
  terms.images = p.images;
  terms.first_level = static_cast<int>(first);
  terms.has_gc_block = p.has_gc_block;
  terms.terms = out.terms;
  for (int k = 0; k < kTerms; ++k) terms.sums[k] = out.sums[k];
  for (int l = 0; l < params.level_count; ++l) {
    const Level& level = params.levels[l];
    auto& to = terms.levels[l];
    to.image_numbers = level.image_numbers;
    to.shift_parts = gc.levels[l].shift_parts;
    to.channels = level.channels;
    for (int k = 0; k < kTerms; ++k) to.weights[k] = level.weights[k];
  }
  return terms;
}

Plan plan_forward(const Pyramid& p, const ForwardOutput& out, void* memory, int multiprocessors) {
  Plan plan;
  const int wide = p.wide(), number = wide ? 8 : 4;
  const std::vector<Cut> cuts = cuts_of(p, multiprocessors, false);
  Scratch scratch(memory);
  for (size_t first = 0; first < p.levels.size(); first += kMaxLevels) {
    PyramidParams params = params_of(p, first, out.maps, out.stats, cuts);
    for (int l = 0; l < params.level_count; ++l) {
      Level& level = params.levels[l];
      level.chunk_sums = scratch.take(int64_t{p.images} * level.chunks * chunk_stride(level.channels) * number);
      level.image_numbers = static_cast<double*>(scratch.take(int64_t{p.images} * kImageNumbers * 8));
      level.pixel_parts =
          static_cast<double*>(scratch.take(int64_t{p.images} * blocks_of(level.pixels, kMergePixels) * 2 * 8));
    }
    GcParams gc = gc_params_of(p, first, params, nullptr);
    for (int l = 0; p.has_gc_block && l < gc.level_count; ++l) {
      GcLevel& level = gc.levels[l];
      for (int net = 0; net < 2; ++net)
        level.hidden_sums[net] = scratch.take(int64_t{p.images} * level.hidden[net] * number);
      level.shift_parts =
          static_cast<double*>(scratch.take(int64_t{p.images} * blocks_of(level.channels, kGcRows) * 8));
    }
    if (p.has_gc_block) params.done = static_cast<unsigned*>(scratch.take(sizeof(unsigned)));
    add_tile_launches(plan, p, first, kForward, params);
    add_merge_launches(plan, p, wide, params, gc);
    const TermsParams terms = terms_params_of(p, first, params, gc, out);
    if (p.has_gc_block) {
      GcAddedParams added{gc, terms, params.done};
      const int64_t blocks =
          number_blocks(added.gc, [&](const GcLevel& level) { return gc_row_blocks(level.channels, p.images); });
      add_launch(plan, plan.gc_added, kGcAdded, wide, blocks, added);
    } else {
      add_launch(plan, plan.terms, kTermsStep, wide, 1, terms);
    }
  }
  plan.scratch_bytes = scratch.used();
  return plan;
}

static void take_gc_scratch(Scratch& scratch, GcParams& gc, PyramidParams& params, int number, bool parts) {
  for (int l = 0; l < gc.level_count; ++l) {
    GcLevel& level = gc.levels[l];
    for (int net = 0; net < 2; ++net) {
      const int64_t bytes = int64_t{gc.images} * level.hidden[net] * number;
      level.hidden_sums[net] = scratch.take(bytes);
      level.active_grad[net] = scratch.take(bytes);
      level.hidden_grad[net] = scratch.take(bytes);
      level.moments[net] = scratch.take(int64_t{gc.images} * 2 * number);
    }
    level.context_grad = scratch.take(int64_t{2} * gc.images * level.channels * number);
    params.levels[l].context_grad = level.context_grad;
    if (!parts) continue;
    params.levels[l].chunk_sums = scratch.take(int64_t{gc.images} * level.chunks * key_stride(level.channels) * number);
    level.key_parts = params.levels[l].chunk_sums;
  }
}

Plan plan_backward(const Pyramid& p, const void* upstream, const void* maps, const void* stats,
                   const BackwardOutput& out, void* memory, int multiprocessors) {
  Plan plan;
  const int wide = p.wide(), number = wide ? 8 : 4;
  const std::vector<Cut> cuts = cuts_of(p, multiprocessors, true);
  const bool gc_grads = p.has_gc_block && !out.gc_block.empty();
  Scratch scratch(memory);
  for (size_t first = 0; first < p.levels.size(); first += kMaxLevels) {
    PyramidParams params = params_of(p, first, maps, stats, cuts);
    params.upstream = upstream;
    GcParams gc = gc_params_of(p, first, params, upstream);
    for (int l = 0; l < params.level_count; ++l) {
      if (!out.student.empty()) params.levels[l].grad = out.student[first + l];
    }
    if (p.has_gc_block) {
      take_gc_scratch(scratch, gc, params, number, gc_grads);
      add_gc_launch(plan, kGcBackwardHidden, wide, gc, [&](const GcLevel& level) {
        int blocks = 0;
        for (int hidden : level.hidden) blocks += gc_row_blocks(hidden, p.images) + gc_column_blocks(hidden, p.images);
        return blocks;
      });
      add_gc_launch(plan, kGcBackwardContext, wide, gc,
                    [&](const GcLevel& level) { return 2 * gc_column_blocks(level.channels, p.images); });
    }
    if (!out.student.empty() || gc_grads) add_tile_launches(plan, p, first, kBackward, params);
    if (!gc_grads) continue;
    GcParameterParams parameters{gc, {}};
    for (int l = 0; l < gc.level_count; ++l)
      std::copy_n(out.gc_block.begin() + (first + l) * kGcTensors, kGcTensors, parameters.grads[l]);
    const int64_t blocks = number_blocks(parameters.gc, [&](const GcLevel& level) {
      return gc_parameter_blocks(level.channels, level.hidden[0]) +
             gc_parameter_blocks(level.channels, level.hidden[1]);
    });
    add_launch(plan, plan.gc_parameters, kGcParameterGrads, wide, blocks, parameters);
  }
  plan.scratch_bytes = scratch.used();
  return plan;
}

}  // namespace fgd::cuda
