// How a block walks over features whose channels are dense (channels_last), C <= 256. A warp takes whole pixels, so
// that warps need not wait for each other inside a chunk:
//
//   channel = 32·V·v + V·lane + e,  packet v of kVectors, element e of V: 8 channels a thread
//   kPixels pixels a step, kSteps steps to a run of 8 neighbouring pixels, 8 runs (one a warp) to a tile of 64
//
// Lanes behind the last channel hold zeros.
#pragma once

#include "device.cuh"

namespace fgd::cuda::nhwc {

constexpr int kChannels = 8;  // of a thread
static_assert(32 * kChannels == kFastChannels, "a tile has all channels");
constexpr int kRun = 8;  // pixels
constexpr int kTile = kRun * kWarps;

template <class S, class T>
constexpr int kVectors = kChannels / kPair<S, T>;
template <class S, class T>
constexpr int kPixels = kPair<S, T> / 2;
template <class S, class T>
constexpr int kSteps = kRun / kPixels<S, T>;

template <class S, class T>
FGD_DEVICE int first_channel(int v) {
  return (32 * v + lane_index()) * kPair<S, T>;
}

// The first pixel of a warp's step.
template <class S, class T>
FGD_DEVICE int pixel_of(int begin, int step) {
  return begin + step / kSteps<S, T> * kTile + warp_index() * kRun + step % kSteps<S, T> * kPixels<S, T>;
}

// This thread's packets of a step.
template <class S, class T>
struct Step {
  Packet<S, kPair<S, T>> student[kPixels<S, T>][kVectors<S, T>];
  Packet<T, kPair<S, T>> teacher[kPixels<S, T>][kVectors<S, T>];
};

// This thread's packet v of pixel 0 and the stride to the next pixel's; kZeros, and 0, where the channel is not there.
template <class S, class T>
struct Column {
  const S* student;
  const T* teacher;
  int64_t student_pixel, teacher_pixel;
};

template <class S, class T>
struct Image {
  Column<S, T> column[kVectors<S, T>];
  bool vectors;
  FGD_DEVICE Image(const Level& level, int image) : vectors(level.student.alignment & level.teacher.alignment & 16) {
#pragma unroll
    for (int v = 0; v < kVectors<S, T>; ++v) {
      const int c = first_channel<S, T>(v);
      const bool there = c < level.channels;
      column[v] = {there ? image_data<const S>(level.student, image) + c : zeros_of<S>(),
                   there ? image_data<const T>(level.teacher, image) + c : zeros_of<T>(),
                   there ? level.student.pixel : 0, there ? level.teacher.pixel : 0};
    }
  }

  // Pixels from `first` on; zeros at and behind `end`.
  FGD_DEVICE void load(const Level& level, int first, int end, Step<S, T>& step) const {
    if (vectors && first + kPixels<S, T> <= end) {
#pragma unroll
      for (int v = 0; v < kVectors<S, T>; ++v) {
        const S* s = column[v].student + first * column[v].student_pixel;
        const T* t = column[v].teacher + first * column[v].teacher_pixel;
#pragma unroll
        for (int j = 0; j < kPixels<S, T>; ++j, s += column[v].student_pixel, t += column[v].teacher_pixel) {
          step.student[j][v] = load_packet<kPair<S, T>>(s);
          step.teacher[j][v] = load_packet<kPair<S, T>>(t);
        }
      }
      return;
    }
#pragma unroll
    for (int j = 0; j < kPixels<S, T>; ++j)
#pragma unroll
      for (int v = 0; v < kVectors<S, T>; ++v) {
        const Column<S, T>& c = column[v];
        const int count = first + j < end ? level.channels - first_channel<S, T>(v) : 0;
        step.student[j][v] = gather_packet<kPair<S, T>>(c.student + (first + j) * c.student_pixel, count);
        step.teacher[j][v] = gather_packet<kPair<S, T>>(c.teacher + (first + j) * c.teacher_pixel, count);
      }
  }
};

// V channels of a packet.
template <class T, int V>
FGD_DEVICE void unpack_channels(const Packet<T, V> (&packet)[kChannels / V], float (&out)[kChannels]) {
#pragma unroll
  for (int v = 0; v < kChannels / V; ++v) {
    float part[V];
    unpack<T, V>(packet[v], part, T{});
#pragma unroll
    for (int e = 0; e < V; ++e) out[v * V + e] = part[e];
  }
}

// value(c) is worked out by thread c, and given to the threads that have channel c. staged: [kFastChannels], shared.
template <class S, class T, class F>
FGD_DEVICE void spread_channels(float* staged, const F& value, float (&out)[kChannels]) {
  static_assert(kFastChannels == kThreads, "a thread a channel");
  __syncthreads();
  staged[threadIdx.x] = value(static_cast<int>(threadIdx.x));
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kChannels; ++i) out[i] = staged[first_channel<S, T>(i / kPair<S, T>) + i % kPair<S, T>];
}

// f(i, c) for each of this thread's channels.
template <class S, class T, class F>
FGD_DEVICE void for_channels(const F& f) {
#pragma unroll
  for (int i = 0; i < kChannels; ++i) f(i, first_channel<S, T>(i / kPair<S, T>) + i % kPair<S, T>);
}

}  // namespace fgd::cuda::nhwc
