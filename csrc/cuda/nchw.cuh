// How a block walks over features whose pixels are dense (NCHW), C <= 256: a tile is four packets of pixels wide (32
// pixels of two bytes, 16 of four) and all channels high. A warp reads 8 rows of 64 bytes at a time:
//
//   lane = 4·row + column,  channel = 64·i + 8·warp + row for i = 0 .. 3,  pixels column·V .. column·V + V - 1
//
// so a thread holds 4 channels × V pixels, 16 bytes of each channel; zeros for channels behind the last one.
#pragma once

#include "device.cuh"

namespace fgd::cuda::nchw {

constexpr int kRows = 4;     // channels of a thread
constexpr int kColumns = 4;  // packets of a tile's row
static_assert(kRows * kThreads / kColumns == kFastChannels, "a tile has all channels");

template <class S, class T>
constexpr int kTilePixels = kColumns * kPair<S, T>;

FGD_DEVICE int column() { return threadIdx.x & (kColumns - 1); }
FGD_DEVICE int channel(int i) { return i * (kThreads / kColumns) + threadIdx.x / kColumns; }

// This thread's packets of a tile.
template <class S, class T>
struct Tile {
  Packet<S, kPair<S, T>> student[kRows];
  Packet<T, kPair<S, T>> teacher[kRows];
};

// Where this thread's rows begin, at its column. A row that is not there reads kZeros over and over (step 0).
template <class S, class T>
struct Rows {
  const S* student[kRows];
  const T* teacher[kRows];
  int step[kRows];
  FGD_DEVICE Rows(const Level& level, int image) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int c = channel(i), at = column() * kPair<S, T>;
      const bool there = c < level.channels;
      step[i] = there ? 1 : 0;
      student[i] =
          there ? image_data<const S>(level.student, image) + c * level.student.channel + at : zeros_of<S>() + at;
      teacher[i] =
          there ? image_data<const T>(level.teacher, image) + c * level.teacher.channel + at : zeros_of<T>() + at;
    }
  }
  // Pixels from `first` on; zeros at and behind `end`. By packets, by words, by words that are shifted, or one by one.
  FGD_DEVICE void load(const Level& level, int first, int end, Tile<S, T>& tile) const {
    const int alignment = min(level.student.alignment, level.teacher.alignment);
    if (alignment == 16 && first + kTilePixels<S, T> <= end)
      load_rows(first, tile, [](auto from, int) { return load_packet<kPair<S, T>>(from); });
    else if (kHalves && alignment >= 4 && (end - first) % 2 == 0)
      gather_rows(first, end, tile, [](auto from, int count) { return gather_words<kPair<S, T>>(from, count); });
    else if (kHalves && first + kTilePixels<S, T> < end)
      load_rows(first, tile, [](auto from, int) { return shifted_packet<kPair<S, T>>(from); });
    else
      gather_rows(first, end, tile, [](auto from, int count) { return gather_packet<kPair<S, T>>(from, count); });
  }

 private:
  static constexpr bool kHalves = sizeof(S) == 2 || sizeof(T) == 2;
  // read(from, count): a packet of which `count` elements are there.
  template <class F>
  FGD_DEVICE void load_rows(int first, Tile<S, T>& tile, const F& read) const {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      tile.student[i] = read(student[i] + int64_t{first} * step[i], kPair<S, T>);
      tile.teacher[i] = read(teacher[i] + int64_t{first} * step[i], kPair<S, T>);
    }
  }
  template <class F>
  FGD_DEVICE void gather_rows(int first, int end, Tile<S, T>& tile, const F& read) const {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int count = step[i] * (end - first - column() * kPair<S, T>);
      tile.student[i] = read(student[i] + first, count);
      tile.teacher[i] = read(teacher[i] + first, count);
    }
  }
};

// V consecutive numbers of shared memory at this thread's column.
template <int V>
FGD_DEVICE void read_columns(const float* from, float (&out)[V]) {
  const float4* packets = reinterpret_cast<const float4*>(from + column() * V);
#pragma unroll
  for (int i = 0; i < V / 4; ++i) {
    const float4 x = packets[i];
    out[4 * i] = x.x;
    out[4 * i + 1] = x.y;
    out[4 * i + 2] = x.z;
    out[4 * i + 3] = x.w;
  }
}

}  // namespace fgd::cuda::nchw
