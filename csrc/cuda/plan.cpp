#include "plan.h"

#include <algorithm>
#include <cstring>

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

bool aligned_packets(const Features& f, int channels, DType type, bool pixels_dense) {
  const int64_t packet = 16 / size_of(type);
  const int64_t row = pixels_dense ? f.channel : f.pixel;
  return reinterpret_cast<uintptr_t>(f.data) % 16 == 0 && row % packet == 0 && f.image % packet == 0 &&
         (pixels_dense || channels % packet == 0);
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

constexpr int kFastChannels = 256;

static int variant_of(const Pyramid& p, const LevelInput& level) {
  if (p.wide()) return kGeneric + 1;
  if (p.student_type != p.teacher_type || level.channels > kFastChannels) return kGeneric;
  return (level.pixels_dense ? kNchw : kNhwc) + p.student_type;
}

static int tile_pixels(int variant) {
  if (variant == kNchw + kFloat32) return 16;
  return variant >= kNhwc && variant < kGeneric ? 64 : 32;
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
};

// Equal shares of an image, in whole tiles.
static Cut cut_into_chunks(int64_t pixels, int variant, int chunk_pixels) {
  const int tile = tile_pixels(variant), chunks = blocks_of(pixels, std::max(chunk_pixels, tile));
  const int equal = blocks_of(blocks_of(pixels, chunks), tile) * tile;
  return {equal, blocks_of(pixels, equal)};
}

// The longest chunks, whose sums take the least memory, of those that are done within 3% of the soonest. A block's
// beginning and end cost about as much as kOverhead pixels.
static int chunk_pixels_of(const Pyramid& p, int multiprocessors) {
  constexpr int kLeast = 128, kMost = 2048, kStep = 32, kOverhead = 64;
  std::vector<int64_t> ends;
  for (int pixels = kMost; pixels >= kLeast; pixels -= kStep) {
    Schedule schedule(multiprocessors);
    for (const LevelInput& level : p.levels) {
      const Cut cut = cut_into_chunks(level.pixels(), variant_of(p, level), pixels);
      schedule.add(int64_t{p.images} * cut.chunks, cut.chunk_pixels + kOverhead);
    }
    ends.push_back(schedule.end());
  }
  const int64_t soon_enough = *std::min_element(ends.begin(), ends.end()) * 103 / 100;
  const auto first = std::find_if(ends.begin(), ends.end(), [&](int64_t end) { return end <= soon_enough; });
  return kMost - kStep * static_cast<int>(first - ends.begin());
}

// ---- parameters ----------------------------------------------------------------------------------------------------

static const char* at(const void* base, int64_t numbers, int size) {
  return static_cast<const char*>(base) + numbers * size;
}

// Up to kMaxLevels levels from `first` on; the pointers into maps and stats.
static PyramidParams params_of(const Pyramid& p, size_t first, const void* maps, const void* stats, int chunk_pixels) {
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
    level.channels = in.channels;
    level.height = in.height;
    level.width = in.width;
    level.pixels = static_cast<int>(in.pixels());
    level.maps = const_cast<char*>(at(maps, kMaps * p.images * pixels, number));
    level.stats = const_cast<char*>(at(stats, kStats * p.images * channels, number));
    if (p.has_gc_block) level.key_s = in.gc_block[0], level.key_t = in.gc_block[2];
    for (int k = 0; k < kTerms; ++k) level.weights[k] = in.weights[k] / p.images;
    const Cut cut = cut_into_chunks(in.pixels(), variant_of(p, in), chunk_pixels);
    level.chunk_pixels = cut.chunk_pixels;
    level.chunks = cut.chunks;
    pixels += in.pixels();
    channels += in.channels;
  }
  return out;
}

static GcParams gc_params_of(const Pyramid& p, size_t first, const PyramidParams& levels, const void* grads) {
  GcParams out;
  std::memset(static_cast<void*>(&out), 0, sizeof(out));
  out.level_count = levels.level_count;
  out.images = p.images;
  out.student_type = p.student_type;
  out.teacher_type = p.teacher_type;
  out.grads = grads;
  for (int l = 0; l < out.level_count; ++l) {
    const LevelInput& in = p.levels[first + l];
    GcLevel& level = out.levels[l];
    std::copy(in.gc_block, in.gc_block + kGcTensors, level.tensors);
    level.student = in.student;
    level.teacher = in.teacher;
    level.channels = in.channels;
    level.pixels = levels.levels[l].pixels;
    level.chunks = levels.levels[l].chunks;
    level.hidden[0] = in.gc_hidden[0];
    level.hidden[1] = in.gc_hidden[1];
    level.stats = levels.levels[l].stats;
    level.weight = levels.levels[l].weights[kGlobal];
  }
  return out;
}

// ---- launches ------------------------------------------------------------------------------------------------------

static void add_launch(Plan& plan, int step, int variant, int64_t blocks, const void* params, size_t bytes) {
  plan.launches.push_back({step, variant, blocks, params, bytes});
}

// The pass over features: one launch a kernel, which is one in all unless levels differ in layout or width.
static void add_tile_launches(Plan& plan, const Pyramid& p, size_t first, int step, const PyramidParams& params) {
  for (int variant = 0; variant < kTileVariants; ++variant) {
    PyramidParams mine = params;
    mine.level_count = 0;
    int64_t blocks = 0;
    for (int l = 0; l < params.level_count; ++l) {
      if (variant_of(p, p.levels[first + l]) != variant) continue;
      Level& level = mine.levels[mine.level_count++];
      level = params.levels[l];
      level.first_block = static_cast<int>(blocks);
      blocks += int64_t{p.images} * level.chunks;
    }
    if (mine.level_count == 0) continue;
    plan.pyramids.push_back(mine);
    add_launch(plan, step, variant, blocks, &plan.pyramids.back(), sizeof(mine));
  }
}

// blocks(level) of a GcBlock kernel.
template <class F>
static void add_gc_launch(Plan& plan, int step, int variant, GcParams params, const F& blocks_of_level) {
  int64_t blocks = 0;
  for (int l = 0; l < params.level_count; ++l) {
    params.levels[l].first_block = static_cast<int>(blocks);
    blocks += blocks_of_level(params.levels[l]);
  }
  plan.gc_blocks.push_back(params);
  add_launch(plan, step, variant, blocks, &plan.gc_blocks.back(), sizeof(params));
}

static void add_merge_launches(Plan& plan, int variant, const PyramidParams& params) {
  int64_t merge = 0, finish = 0;
  for (int l = 0; l < params.level_count; ++l) {
    const Level& level = params.levels[l];
    const int pixels = blocks_of(level.pixels, kMergePixels);
    merge += int64_t{params.images} * (pixels + blocks_of(int64_t{kSums} * level.channels, kMergeColumns));
    finish += int64_t{params.images} * (pixels + 1);
  }
  plan.pyramids.push_back(params);
  add_launch(plan, kMerge, variant, merge, &plan.pyramids.back(), sizeof(params));
  add_launch(plan, kFinish, variant, finish, &plan.pyramids.back(), sizeof(params));
}

static void add_terms_launch(Plan& plan, const Pyramid& p, size_t first, int variant, const PyramidParams& params,
                             const GcParams& gc, const ForwardOutput& out) {
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
  plan.terms.push_back(terms);
  add_launch(plan, kTermsStep, variant, 1, &plan.terms.back(), sizeof(terms));
}

Plan plan_forward(const Pyramid& p, const ForwardOutput& out, void* memory, int multiprocessors) {
  Plan plan;
  const int wide = p.wide(), number = wide ? 8 : 4, chunk_pixels = chunk_pixels_of(p, multiprocessors);
  Scratch scratch(memory);
  for (size_t first = 0; first < p.levels.size(); first += kMaxLevels) {
    PyramidParams params = params_of(p, first, out.maps, out.stats, chunk_pixels);
    for (int l = 0; l < params.level_count; ++l) {
      Level& level = params.levels[l];
      level.chunk_sums = scratch.take(int64_t{p.images} * level.chunks * chunk_stride(level.channels) * number);
      level.image_numbers = static_cast<double*>(scratch.take(int64_t{p.images} * kImageNumbers * 8));
      level.pixel_parts =
          static_cast<double*>(scratch.take(int64_t{p.images} * blocks_of(level.pixels, kMergePixels) * 2 * 8));
    }
    add_tile_launches(plan, p, first, kForward, params);
    add_merge_launches(plan, wide, params);
    GcParams gc = gc_params_of(p, first, params, nullptr);
    if (p.has_gc_block) {
      for (int l = 0; l < gc.level_count; ++l) {
        GcLevel& level = gc.levels[l];
        for (int net = 0; net < 2; ++net)
          level.hidden_sums[net] = scratch.take(int64_t{p.images} * level.hidden[net] * number);
        level.shift_parts =
            static_cast<double*>(scratch.take(int64_t{p.images} * blocks_of(level.channels, kGcRows) * 8));
      }
      add_gc_launch(plan, kGcHidden, wide, gc, [&](const GcLevel& level) {
        return gc_row_blocks(level.hidden[0], p.images) + gc_row_blocks(level.hidden[1], p.images);
      });
      add_gc_launch(plan, kGcAdded, wide, gc,
                    [&](const GcLevel& level) { return gc_row_blocks(level.channels, p.images); });
    }
    add_terms_launch(plan, p, first, wide, params, gc, out);
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

Plan plan_backward(const Pyramid& p, const void* grads, const void* maps, const void* stats, const BackwardOutput& out,
                   void* memory, int multiprocessors) {
  Plan plan;
  const int wide = p.wide(), number = wide ? 8 : 4, chunk_pixels = chunk_pixels_of(p, multiprocessors);
  const bool gc_grads = p.has_gc_block && !out.gc_block.empty();
  Scratch scratch(memory);
  for (size_t first = 0; first < p.levels.size(); first += kMaxLevels) {
    PyramidParams params = params_of(p, first, maps, stats, chunk_pixels);
    params.grads = grads;
    GcParams gc = gc_params_of(p, first, params, grads);
    for (int l = 0; l < params.level_count; ++l) {
      if (!out.student.empty()) params.levels[l].grad = out.student[first + l];
      for (int i = 0; gc_grads && i < kGcTensors; ++i)
        gc.levels[l].grads[i] = out.gc_block[(first + l) * kGcTensors + i];
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
    if (gc_grads)
      add_gc_launch(plan, kGcParameterGrads, wide, gc, [&](const GcLevel& level) {
        return gc_parameter_blocks(level.channels, level.hidden[0]) +
               gc_parameter_blocks(level.channels, level.hidden[1]);
      });
  }
  plan.scratch_bytes = scratch.used();
  return plan;
}

}  // namespace fgd::cuda
