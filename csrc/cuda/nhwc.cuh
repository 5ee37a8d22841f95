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

template <class T>
constexpr int kVectors = kChannels / kPacket<T>;
template <class T>
constexpr int kPixels = sizeof(T) == 4 ? 2 : 4;
template <class T>
constexpr int kSteps = kRun / kPixels<T>;

template <class T>
FGD_DEVICE int first_channel(int v) {
  return (32 * v + lane_index()) * kPacket<T>;
}

// The first pixel of a warp's step.
template <class T>
FGD_DEVICE int pixel_of(int begin, int step) {
  return begin + step / kSteps<T> * kTile + warp_index() * kRun + step % kSteps<T> * kPixels<T>;
}

// This thread's packets of a step.
template <class T>
struct Step {
  uint4 student[kPixels<T>][kVectors<T>], teacher[kPixels<T>][kVectors<T>];
};

// This thread's packet v of pixel 0 and the stride to the next pixel's; kZeros, and 0, where the channel is not there.
template <class T>
struct Column {
  const T *student, *teacher;
  int64_t student_pixel, teacher_pixel;
};

template <class T>
struct Image {
  Column<T> column[kVectors<T>];
  bool vectors;
  FGD_DEVICE Image(const Level& level, int image) : vectors(level.student.alignment & level.teacher.alignment & 16) {
#pragma unroll
    for (int v = 0; v < kVectors<T>; ++v) {
      const int c = first_channel<T>(v);
      const T* zeros = reinterpret_cast<const T*>(kZeros);
      const bool there = c < level.channels;
      column[v] = {there ? image_data<const T>(level.student, image) + c : zeros,
                   there ? image_data<const T>(level.teacher, image) + c : zeros, there ? level.student.pixel : 0,
                   there ? level.teacher.pixel : 0};
    }
  }

  // Pixels from `first` on; zeros at and behind `end`.
  FGD_DEVICE void load(const Level& level, int first, int end, Step<T>& step) const {
    if (vectors && first + kPixels<T> <= end) {
#pragma unroll
      for (int v = 0; v < kVectors<T>; ++v) {
        const T *s = column[v].student + first * column[v].student_pixel,
                *t = column[v].teacher + first * column[v].teacher_pixel;
#pragma unroll
        for (int j = 0; j < kPixels<T>; ++j, s += column[v].student_pixel, t += column[v].teacher_pixel) {
          step.student[j][v] = load_packet(s);
          step.teacher[j][v] = load_packet(t);
        }
      }
      return;
    }
#pragma unroll
    for (int j = 0; j < kPixels<T>; ++j)
#pragma unroll
      for (int v = 0; v < kVectors<T>; ++v) {
        const Column<T>& c = column[v];
        const int count = first + j < end ? level.channels - first_channel<T>(v) : 0;
        step.student[j][v] = gather_packet(c.student + (first + j) * c.student_pixel, count);
        step.teacher[j][v] = gather_packet(c.teacher + (first + j) * c.teacher_pixel, count);
      }
  }
};

template <class T>
FGD_DEVICE void unpack_channels(const uint4 (&packet)[kVectors<T>], float (&out)[kChannels]) {
#pragma unroll
  for (int v = 0; v < kVectors<T>; ++v) {
    float part[kPacket<T>];
    unpack(packet[v], part, T{});
#pragma unroll
    for (int e = 0; e < kPacket<T>; ++e) out[v * kPacket<T> + e] = part[e];
  }
}

// value(c) is worked out by thread c, and given to the threads that have channel c. staged: [kFastChannels], shared.
template <class T, class F>
FGD_DEVICE void spread_channels(float* staged, const F& value, float (&out)[kChannels]) {
  static_assert(kFastChannels == kThreads, "a thread a channel");
  __syncthreads();
  staged[threadIdx.x] = value(static_cast<int>(threadIdx.x));
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kChannels; ++i) out[i] = staged[first_channel<T>(i / kPacket<T>) + i % kPacket<T>];
}

// f(i, c) for each of this thread's channels.
template <class T, class F>
FGD_DEVICE void for_channels(const F& f) {
#pragma unroll
  for (int i = 0; i < kChannels; ++i) f(i, first_channel<T>(i / kPacket<T>) + i % kPacket<T>);
}

}  // namespace fgd::cuda::nhwc
