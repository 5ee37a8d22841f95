// How a block walks over features whose channels are dense (channels_last) with 257 to 2048 channels, student and
// teacher of one type. Eight lanes, a group, have 64 channels of a few pixels; as many groups as it takes have all
// channels of these pixels, and the block's 32 groups do as many such slots as there is room for:
//
//   group = slot·groups_of(C) + unit,  channel = 64·unit + 8·V·v + V·(lane mod 8) + e,  packet v, element e of V
//   pixel = kPixels·slot + j
//
// Lanes behind the last channel, and groups behind the last slot, hold zeros.
#pragma once

#include "nhwc.cuh"

namespace fgd::cuda::nhwc_wide {

using nhwc::kChannels;
using nhwc::kPixels;
using nhwc::kVectors;
using nhwc::unpack_channels;

constexpr int kGroup = 8;  // lanes
constexpr int kGroups = kThreads / kGroup, kUnit = kGroup * kChannels;
constexpr int kMostChannels = kGroups * kUnit;
static_assert(kMostChannels >= kMaxChannels, "a tile has all channels");
constexpr int kMostPixels = 32;  // of a tile: a warp's lanes

template <class T>
using Step = nhwc::Step<T, T>;

// A thread's place in a tile.
template <class T>
struct Place {
  int units, slots, unit, slot;  // slot: at or behind `slots`, where there is nothing to do
  FGD_DEVICE explicit Place(int channels) : units((channels + kUnit - 1) / kUnit), slots(kGroups / units) {
    const int group = threadIdx.x / kGroup;
    slot = group / units;
    unit = group - slot * units;
  }
  FGD_DEVICE int pixels() const { return slots * kPixels<T, T>; }  // of a tile
  FGD_DEVICE int first_channel(int v) const {
    return slot < slots ? unit * kUnit + (v * kGroup + static_cast<int>(threadIdx.x) % kGroup) * kPacket<T>
                        : kMostChannels;
  }
  FGD_DEVICE int channel(int i) const { return first_channel(i / kPacket<T>) + i % kPacket<T>; }
};

// One map of an image: this thread's packets of the first pixel of its slot, in the tile that is loaded next, and the
// stride to the next pixel in bytes; kZeros, and 0, where the channels are not there.
template <class T>
struct Map {
  const char* data[kVectors<T, T>];
  int64_t pixel[kVectors<T, T>];
  FGD_DEVICE Map(const Features& f, const Chunk& chunk, int channels, const Place<T>& place) {
#pragma unroll
    for (int v = 0; v < kVectors<T, T>; ++v) {
      const int c = place.first_channel(v), first = chunk.begin + place.slot * kPixels<T, T>;
      const bool there = c < channels;
      pixel[v] = there ? f.pixel * static_cast<int64_t>(sizeof(T)) : 0;
      data[v] = reinterpret_cast<const char*>(there ? image_data<const T>(f, chunk.image) + c + first * f.pixel
                                                    : zeros_of<T>());
    }
  }
  FGD_DEVICE const T* at(int v, int j) const { return reinterpret_cast<const T*>(data[v] + j * pixel[v]); }
};

template <class T>
struct Image {
  Map<T> student, teacher;
  bool vectors;
  FGD_DEVICE Image(const Level& level, const Chunk& chunk, const Place<T>& place)
      : student(level.student, chunk, level.channels, place),
        teacher(level.teacher, chunk, level.channels, place),
        vectors(level.student.alignment & level.teacher.alignment & 16) {}

  // This slot's pixels of the chunk's next tile, which begins at `first`; zeros at and behind `end`.
  FGD_DEVICE void load(const Level& level, const Place<T>& place, int first, int end, Step<T>& step) {
    if (vectors && first + place.pixels() <= end) {
#pragma unroll
      for (int v = 0; v < kVectors<T, T>; ++v) {
        const char *s = student.data[v], *t = teacher.data[v];
#pragma unroll
        for (int j = 0; j < kPixels<T, T>; ++j, s += student.pixel[v], t += teacher.pixel[v]) {
          step.student[j][v] = load_packet<kPacket<T>>(reinterpret_cast<const T*>(s));
          step.teacher[j][v] = load_packet<kPacket<T>>(reinterpret_cast<const T*>(t));
        }
      }
      next_tile(place);
      return;
    }
    const int pixels = end - first - place.slot * kPixels<T, T>;  // that are there
#pragma unroll
    for (int j = 0; j < kPixels<T, T>; ++j)
#pragma unroll
      for (int v = 0; v < kVectors<T, T>; ++v) {
        const bool there = j < pixels;
        const T *s = student.at(v, j), *t = teacher.at(v, j);
        if (vectors) {
          step.student[j][v] = load_packet<kPacket<T>>(there ? s : zeros_of<T>());
          step.teacher[j][v] = load_packet<kPacket<T>>(there ? t : zeros_of<T>());
          continue;
        }
        const int count = there ? level.channels - place.first_channel(v) : 0;
        step.student[j][v] = gather_packet<kPacket<T>>(s, count);
        step.teacher[j][v] = gather_packet<kPacket<T>>(t, count);
      }
    next_tile(place);
  }

 private:
  FGD_DEVICE void next_tile(const Place<T>& place) {
#pragma unroll
    for (int v = 0; v < kVectors<T, T>; ++v) {
      student.data[v] += place.pixels() * student.pixel[v];
      teacher.data[v] += place.pixels() * teacher.pixel[v];
    }
  }
};

// value(c) is worked out once a channel, and given to the threads that have it. staged: [kMostChannels], shared.
template <class T, class F>
FGD_DEVICE void spread_channels(const Place<T>& place, float* staged, const F& value, float (&out)[kChannels]) {
  __syncthreads();
  for (int c = threadIdx.x; c < kMostChannels; c += kThreads) staged[c] = value(c);
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kChannels; ++i) out[i] = place.slot < place.slots ? staged[place.channel(i)] : 0.f;
}

// K sums of kPixels pixels each over a group's lanes, to part[k][group][pixel].
template <class T, int K>
FGD_DEVICE void share_sums(const float (&sum)[K * kPixels<T, T>], float (*part)[kGroups][kPixels<T, T>]) {
  constexpr int kAll = K * kPixels<T, T>, kFirst = kAll < kGroup ? kAll : kGroup;
  const int lane = lane_index() % kGroup, group = threadIdx.x / kGroup;
  if constexpr (kAll <= kGroup) {
    const float x = sum_over_lanes<kAll, 1, kGroup>(sum, lane);
    const int index = owned_sum<kAll, 1>(lane);
    if (lane < kFirst) part[index / kPixels<T, T>][group][index % kPixels<T, T>] = x;
  } else {  // two rounds of a sum a lane
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float of[kAll / 2];
#pragma unroll
      for (int i = 0; i < kAll / 2; ++i) of[i] = sum[half * kAll / 2 + i];
      const float x = sum_over_lanes<kAll / 2, 1, kGroup>(of, lane);
      const int index = half * kAll / 2 + owned_sum<kAll / 2, 1>(lane);
      part[index / kPixels<T, T>][group][index % kPixels<T, T>] = x;
    }
  }
}

// Σ over the groups that have a pixel's channels, in a fixed order; 0 behind the tile.
template <class T>
FGD_DEVICE float sum_of_groups(const Place<T>& place, const float (&part)[kGroups][kPixels<T, T>], int pixel) {
  const int slot = pixel / kPixels<T, T>, j = pixel % kPixels<T, T>;
  float sum[4] = {};
  if (slot < place.slots)
    for (int unit = 0; unit < place.units; unit += 4)
#pragma unroll
      for (int k = 0; k < 4; ++k)
        if (unit + k < place.units) sum[k] += part[slot * place.units + unit + k][j];
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// A number of each of a slot's pixels. from: [kMostPixels], aligned to 16 bytes.
template <class T>
FGD_DEVICE void read_slot(const float* from, int slot, float (&out)[kPixels<T, T>]) {
  if constexpr (kPixels<T, T> == 4) {
    const float4 x = reinterpret_cast<const float4*>(from)[slot];
    out[0] = x.x, out[1] = x.y, out[2] = x.z, out[3] = x.w;
  } else {
    const float2 x = reinterpret_cast<const float2*>(from)[slot];
    out[0] = x.x, out[1] = x.y;
  }
}

// Sums of the channels of all slots, slot after slot, to out[k][c]. staged: [kMostChannels], shared.
template <class T, int K, class F>
FGD_DEVICE void write_sums(const Place<T>& place, const F& sum, int channels, float* staged, float* out) {
#pragma unroll
  for (int k = 0; k < K; ++k) {
    for (int slot = 0; slot < place.slots; ++slot) {
      __syncthreads();
      if (slot != place.slot) continue;
#pragma unroll
      for (int i = 0; i < kChannels; ++i) {
        float& to = staged[place.channel(i)];
        to = slot == 0 ? sum(i, k) : to + sum(i, k);
      }
    }
    __syncthreads();
    for (int c = threadIdx.x; c < channels; c += kThreads) out[k * channels + c] = staged[c];
  }
}

}  // namespace fgd::cuda::nhwc_wide
