// How a block walks over features whose pixels are dense (NCHW) with 257 to 2048 channels, student and teacher of one
// type: nchw.cuh's way with more channels a thread than four, and four packets of pixels or two, which are a sector of
// memory:
//
//   lane = kColumns·row + column,  channel = kRows·i + (32 / kColumns)·warp + row for i = 0 .. kChannels - 1
//
//   up to 512 channels   8 a thread, four packets
//   up to 1024           8 a thread, two packets
//   up to 2048           16 a thread, two packets
//
// Two tiles do not fit into registers. So a row of the next tile is loaded where this tile's has been used for the last
// time. Nor do 16 channels and all their sums: there the two threads of a row keep half of them each. Rows that no lane
// of a warp has a channel for are skipped, so that the work goes with C.
#pragma once

#include "device.cuh"

namespace fgd::cuda::nchw_wide {

// Pixels are kColumns packets, channels more than kSure·kRows and at most kChannels·kRows.
template <class S, int kWidth, int kHeight>
struct Shape {
  using T = S;
  static constexpr int kChannels = kHeight, kSure = kHeight / 2;  // of a thread, and those that every thread has
  static constexpr int kColumns = kWidth, kV = kPacket<T>, kPixels = kColumns * kV;
  static constexpr int kShare = kChannels > 8 ? 2 : 1;  // threads that a channel's sums are divided among
  static_assert(kShare == 1 || kShare == kColumns, "as many as have its pixels");
  static_assert(kShare == 1 || kChannels * kThreads / kColumns >= kMaxChannels, "a tile has all channels");
  static constexpr int kRows = kThreads / kColumns, kWarpRows = 32 / kColumns, kMost = kChannels * kRows;
  FGD_DEVICE static int column() { return threadIdx.x & (kColumns - 1); }
  FGD_DEVICE static int channel(int i) { return i * kRows + static_cast<int>(threadIdx.x) / kColumns; }
  FGD_DEVICE static int rows_of(int channels) { return (channels + kRows - 1) / kRows; }
};

// This thread's packets of a tile.
template <class Z>
struct Tile {
  Packet<typename Z::T, Z::kV> student[Z::kChannels], teacher[Z::kChannels];
};

// A thread's place in a map: its first row of the tile that is to be loaded, at its column.
template <class T>
struct Place {
  T* at;
  int64_t next;  // row, in elements
};
template <class Z>
FGD_DEVICE Place<typename Z::T> place_of(const Features& f, int image, int first) {
  using T = typename Z::T;
  return {image_data<T>(f, image) + Z::channel(0) * f.channel + (first + Z::column() * Z::kV), f.channel * Z::kRows};
}

template <class Z>
struct Maps {
  using T = typename Z::T;
  Place<T> student, teacher;
  int own, rows, alignment;  // channels of this thread, of its warp
  FGD_DEVICE Maps(const Level& level, const Chunk& chunk)
      : student(place_of<Z>(level.student, chunk.image, chunk.begin)),
        teacher(place_of<Z>(level.teacher, chunk.image, chunk.begin)),
        own(Z::rows_of(level.channels - Z::channel(0))),
        rows(Z::rows_of(level.channels - warp_index() * Z::kWarpRows)),
        alignment(min(level.student.alignment, level.teacher.alignment)) {}
  // Whether a tile may be read by packets, row by row.
  FGD_DEVICE bool whole(int first, int end) const { return alignment == 16 && first + Z::kPixels <= end; }
  FGD_DEVICE bool there(int i) const { return i < Z::kSure || i < own; }
  // Row after row of a whole tile, then back to the first: copies of the places would cost registers.
  FGD_DEVICE void load_row(int i, Tile<Z>& tile) {
    tile.student[i] = load_packet<Z::kV>(there(i) ? student.at : zeros_of<T>());
    tile.teacher[i] = load_packet<Z::kV>(there(i) ? teacher.at : zeros_of<T>());
    student.at += student.next, teacher.at += teacher.next;
  }
  FGD_DEVICE void rewind() { student.at -= rows * student.next, teacher.at -= rows * teacher.next; }
  FGD_DEVICE void next_tile() { student.at += Z::kPixels, teacher.at += Z::kPixels; }
  // Pixels from `first` on; zeros at and behind `end`. As in nchw.cuh.
  FGD_DEVICE void load(int first, int end, Tile<Z>& tile) {
    auto gather_map = [&](const Place<T>& place, auto& packet, const auto& read) {
      const T* from = place.at;
      for_rows([&](int i) {
        packet[i] = read(from, there(i) ? end - first - Z::column() * Z::kV : 0);
        from += place.next;
      });
    };
    auto gather = [&](const auto& read) {
      gather_map(student, tile.student, read);
      gather_map(teacher, tile.teacher, read);
    };
    if (whole(first, end)) {
      for_rows([&](int i) { load_row(i, tile); });
      rewind();
    } else if (sizeof(T) == 2 && alignment >= 4 && (end - first) % 2 == 0) {
      gather([](const T* from, int count) { return gather_words<Z::kV>(from, count); });
    } else if (sizeof(T) == 2 && first + Z::kPixels < end) {
      gather([](const T* from, int count) { return shifted_packet<Z::kV>(count > 0 ? from : zeros_of<T>()); });
    } else {
      gather([](const T* from, int count) { return gather_packet<Z::kV>(from, count); });
    }
  }
  // f(i) for the channels of this thread's warp. Where registers are short, rows that are always there are asked for,
  // too: the compiler does not work on several rows at a time then.
  template <class F>
  FGD_DEVICE void for_rows(const F& f) const {
#pragma unroll
    for (int i = 0; i < Z::kChannels; ++i)
      if (i < (Z::kShare == 1 ? Z::kSure : 1) || i < rows) f(i);
  }
};

// A sum of each of this thread's pixels, over the rows of a warp: into part[warp][pixel] of shared memory.
template <class Z>
FGD_DEVICE void share_sums(const float (&sum)[Z::kV], float (&part)[kWarps][Z::kPixels]) {
  const int lane = lane_index(), pixel = Z::column() * Z::kV + owned_sum<Z::kV, Z::kColumns>(lane);
  const float x = sum_over_lanes<Z::kV, Z::kColumns, 32>(sum, lane);
  if (Z::kV == Z::kWarpRows || lane < Z::kColumns * Z::kV) part[warp_index()][pixel] = x;
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

// Four of these numbers from the `begin`-th on, read anew at every call: the compiler does not keep them, for which
// there are too few registers.
template <class Z>
FGD_DEVICE void read_four_again(const float (&from)[Z::kPixels], int begin, float* out) {
  const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(from + Z::column() * Z::kV));
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(out[0]), "=f"(out[1]), "=f"(out[2]), "=f"(out[3])
               : "r"(at + 4 * begin)
               : "memory");
}

// K sums of a channel, as a thread keeps them: all of its own pixels, or every other one over both columns, sum
// 2k + column in place k.
template <class Z, int K>
using Sums = float[K / Z::kShare];

// One over both columns: a in the first one's thread, b in the second one's.
template <class Z>
FGD_DEVICE float own_sum(float a, float b) {
  static_assert(Z::kShare == 2);
  const bool second = Z::column();
  return (second ? b : a) + __shfl_xor_sync(kAllLanes, second ? a : b, 1);
}

// To out[k][channel].
template <class Z, int K>
FGD_DEVICE void write_sums(const Sums<Z, K> (&sum)[Z::kChannels], int channels, float* out) {
#pragma unroll
  for (int i = 0; i < Z::kChannels; ++i)
#pragma unroll
    for (int k = 0; k < K / Z::kShare; ++k)
      if constexpr (Z::kShare == 1) {
        const float x = add_over_lanes<1, Z::kColumns>(sum[i][k]);
        if (Z::column() == 0 && Z::channel(i) < channels) out[k * channels + Z::channel(i)] = x;
      } else if (Z::channel(i) < channels) {
        out[(2 * k + Z::column()) * channels + Z::channel(i)] = sum[i][k];
      }
}

}  // namespace fgd::cuda::nchw_wide

// X(variant, type, columns, channels of a thread)
#define FGD_NCHW_WIDE_512(X) X(512_f32, float, 4, 8) X(512_f16, __half, 4, 8) X(512_bf16, __nv_bfloat16, 4, 8)
#define FGD_NCHW_WIDE_1024(X) X(1024_f32, float, 2, 8) X(1024_f16, __half, 2, 8) X(1024_bf16, __nv_bfloat16, 2, 8)
#define FGD_NCHW_WIDE_2048(X) X(2048_f32, float, 2, 16) X(2048_f16, __half, 2, 16) X(2048_bf16, __nv_bfloat16, 2, 16)
