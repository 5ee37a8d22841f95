// How a block walks over features whose pixels are dense (NCHW) with 257 to 1024 channels, student and teacher of one
// type: nchw.cuh's way with eight channels a thread in place of four, and four packets of pixels (up to 512 channels)
// or two, which are a sector of memory:
//
//   lane = kColumns·row + column,  channel = kRows·i + (32 / kColumns)·warp + row for i = 0 .. 7
//
// Two tiles do not fit into registers. So a row of the next tile is loaded where this tile's has been used for the last
// time. Rows that no lane of a warp has a channel for are skipped, so that the work goes with C.
#pragma once

#include "device.cuh"

namespace fgd::cuda::nchw_wide {

constexpr int kChannels = 8;          // of a thread
constexpr int kSure = kChannels / 2;  // of which every thread has that many

// Pixels are kColumns packets, channels more than kSure·kRows and at most kChannels·kRows.
template <class S, int kWidth>
struct Shape {
  using T = S;
  static constexpr int kColumns = kWidth, kV = kPacket<T>, kPixels = kColumns * kV;
  static constexpr int kRows = kThreads / kColumns, kWarpRows = 32 / kColumns, kMost = kChannels * kRows;
  FGD_DEVICE static int column() { return threadIdx.x & (kColumns - 1); }
  FGD_DEVICE static int channel(int i) { return i * kRows + static_cast<int>(threadIdx.x) / kColumns; }
  // How many of a thread's channels its warp has to do with.
  FGD_DEVICE static int warp_channels(int channels) {
    return (channels - warp_index() * kWarpRows + kRows - 1) / kRows;
  }
};

// This thread's packets of a tile.
template <class Z>
struct Tile {
  Packet<typename Z::T, Z::kV> student[kChannels], teacher[kChannels];
};

// A thread's place in a map: its row of the image, at its column.
template <class T>
struct Place {
  T* at;
  int64_t next;  // row, in elements
};
template <class Z>
FGD_DEVICE Place<typename Z::T> place_of(const Features& f, int image) {
  using T = typename Z::T;
  return {image_data<T>(f, image) + Z::channel(0) * f.channel + Z::column() * Z::kV, f.channel * Z::kRows};
}

template <class Z>
struct Maps {
  using T = typename Z::T;
  Place<T> student, teacher;
  int channels, rows, alignment;
  FGD_DEVICE Maps(const Level& level, int image)
      : student(place_of<Z>(level.student, image)),
        teacher(place_of<Z>(level.teacher, image)),
        channels(level.channels),
        rows(Z::warp_channels(level.channels)),
        alignment(min(level.student.alignment, level.teacher.alignment)) {}
  // Whether a tile may be read by packets, row by row.
  FGD_DEVICE bool whole(int first, int end) const { return alignment == 16 && first + Z::kPixels <= end; }
  FGD_DEVICE bool there(int i) const { return i < kSure || Z::channel(i) < channels; }
  // Row i, which s and t point to; they go on to the next one.
  FGD_DEVICE void load_row(int i, const T*& s, const T*& t, Tile<Z>& tile) const {
    tile.student[i] = load_packet<Z::kV>(there(i) ? s : zeros_of<T>());
    tile.teacher[i] = load_packet<Z::kV>(there(i) ? t : zeros_of<T>());
    s += student.next, t += teacher.next;
  }
  // Pixels from `first` on; zeros at and behind `end`. As in nchw.cuh.
  FGD_DEVICE void load(int first, int end, Tile<Z>& tile) const {
    auto gather = [&](const auto& read) {
      const T *s = student.at + first, *t = teacher.at + first;
      for_rows([&](int i) {
        const int count = there(i) ? end - first - Z::column() * Z::kV : 0;
        tile.student[i] = read(s, count);
        tile.teacher[i] = read(t, count);
        s += student.next, t += teacher.next;
      });
    };
    if (whole(first, end)) {
      const T *s = student.at + first, *t = teacher.at + first;
      for_rows([&](int i) { load_row(i, s, t, tile); });
    } else if (sizeof(T) == 2 && alignment >= 4 && (end - first) % 2 == 0) {
      gather([](const T* from, int count) { return gather_words<Z::kV>(from, count); });
    } else if (sizeof(T) == 2 && first + Z::kPixels < end) {
      gather([](const T* from, int count) { return shifted_packet<Z::kV>(count > 0 ? from : zeros_of<T>()); });
    } else {
      gather([](const T* from, int count) { return gather_packet<Z::kV>(from, count); });
    }
  }
  // f(i) for the channels of this thread's warp.
  template <class F>
  FGD_DEVICE void for_rows(const F& f) const {
#pragma unroll
    for (int i = 0; i < kChannels; ++i)
      if (i < kSure || i < rows) f(i);
  }
};

// K sums of this thread's pixels, over the rows of a warp: into part[k][warp][pixel] of shared memory.
template <class Z, int K>
FGD_DEVICE void share_sums(const float (&sum)[K][Z::kV], float (*part)[kWarps][Z::kPixels]) {
  const int lane = lane_index(), pixel = Z::column() * Z::kV + owned_sum<Z::kV, Z::kColumns>(lane);
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const float x = sum_over_lanes<Z::kV, Z::kColumns, 32>(sum[k], lane);
    if (Z::kV == Z::kWarpRows || lane < Z::kColumns * Z::kV) part[k][warp_index()][pixel] = x;
  }
}

// A number of each pixel at this thread's column.
template <class Z>
FGD_DEVICE void read_columns(const float (&from)[Z::kPixels], float (&out)[Z::kV]) {
  const float4* packets = reinterpret_cast<const float4*>(from + Z::column() * Z::kV);
#pragma unroll
  for (int i = 0; i < Z::kV / 4; ++i) {
    const float4 x = packets[i];
    out[4 * i] = x.x, out[4 * i + 1] = x.y, out[4 * i + 2] = x.z, out[4 * i + 3] = x.w;
  }
}

// The same, read anew at every call: the compiler does not keep them, for which there are too few registers.
template <class Z>
FGD_DEVICE void read_columns_again(const float (&from)[Z::kPixels], float (&out)[Z::kV]) {
  const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(from + Z::column() * Z::kV));
#pragma unroll
  for (int i = 0; i < Z::kV; i += 4)
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(out[i]), "=f"(out[i + 1]), "=f"(out[i + 2]), "=f"(out[i + 3])
                 : "r"(at + 4 * i)
                 : "memory");
}

// Sums of this thread's channels over the columns, to out[k][channel].
template <class Z, int K>
FGD_DEVICE void write_sums(const float (&sum)[kChannels][K], int channels, float* out) {
#pragma unroll
  for (int i = 0; i < kChannels; ++i)
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const float x = add_over_lanes<1, Z::kColumns>(sum[i][k]);
      if (Z::column() == 0 && Z::channel(i) < channels) out[k * channels + Z::channel(i)] = x;
    }
}

}  // namespace fgd::cuda::nchw_wide
