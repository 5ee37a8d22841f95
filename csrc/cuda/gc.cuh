// The GcBlock's transform (12),  v = W2·relu(LN(W1·ctx + b1)·γ + β) + b2,  C channels and K hidden ones: what its
// kernels share. A pair is two nets, 0 the student's and 1 the teacher's; its tensors are those
// of fgd/gc_block.h.
#pragma once

#include "device.cuh"

namespace fgd::cuda {

// One net of one level. w1 [K][C], b1 [K], gamma and beta [K], w2 [C][K], b2 [C].
template <class A>
struct Net {
  const A *w1, *b1, *gamma, *beta, *w2, *b2;
  const A* context;  // of image 0, [C]; the next image's lies kStats·C further
  A *hidden_sums, *active_grad, *hidden_grad, *moments;
  A* context_grad;  // [N][C]
  int channels, hidden, images, net;

  FGD_DEVICE Net(const GcParams& p, const GcLevel& level, int net)
      : channels(level.channels), hidden(net ? level.hidden[1] : level.hidden[0]), images(p.images), net(net) {
    auto at = [&](GcTensor of_student) { return static_cast<const A*>(level.tensors[gc_tensor(net, of_student)]); };
    w1 = at(kGcW1S), b1 = at(kGcB1S), gamma = at(kGcLnWeightS), beta = at(kGcLnBiasS), w2 = at(kGcW2S), b2 = at(kGcB2S);
    context = static_cast<const A*>(level.stats) + (net ? kStatContextT : kStatContextS) * channels;
    hidden_sums = static_cast<A*>(net ? level.hidden_sums[1] : level.hidden_sums[0]);
    active_grad = static_cast<A*>(net ? level.active_grad[1] : level.active_grad[0]);
    hidden_grad = static_cast<A*>(net ? level.hidden_grad[1] : level.hidden_grad[0]);
    moments = static_cast<A*>(net ? level.moments[1] : level.moments[0]);
    context_grad = static_cast<A*>(level.context_grad) + int64_t{net} * images * channels;
  }
  FGD_DEVICE const A* context_of(int image) const { return context + int64_t{image} * kStats * channels; }
};

// What W1·ctx + b1 needs of a net.
template <class A>
struct HiddenInput {
  const A *w1, *b1;
  const A* context;       // of image 0, [C]
  int64_t context_image;  // from there to the next image's
  A* hidden_sums;         // [N][K]
  int channels, hidden, images;
};

template <class A>
FGD_DEVICE HiddenInput<A> hidden_input(const Net<A>& net) {
  return {net.w1,          net.b1,       net.context, int64_t{kStats} * net.channels,
          net.hidden_sums, net.channels, net.hidden,  net.images};
}

// A net's job: the level, the net, and which of the net's blocks.
struct NetJob {
  int level, net, index;
};

// blocks(level, net): how many blocks a net needs.
template <class Blocks>
FGD_DEVICE NetJob net_job(const GcParams& p, const Blocks& blocks) {
  NetJob job;
  job.level = level_of_block(p.levels, p.level_count, blockIdx.x);
  job.index = blockIdx.x - p.levels[job.level].first_block;
  const int of_student = blocks(p.levels[job.level], 0);
  job.net = job.index >= of_student;
  if (job.net) job.index -= of_student;
  return job;
}

FGD_DEVICE int hidden_of(const GcLevel& level, int net) { return net ? level.hidden[1] : level.hidden[0]; }

// Mean and 1/deviation of a hidden vector, as torch.nn.LayerNorm has them; by one warp.
struct Moments {
  double mean, scale;
  template <class A>
  FGD_DEVICE Moments(const A* hidden, int count) {
    double sum = 0, squares = 0;
    for (int k = lane_index(); k < count; k += 32) sum += hidden[k];
    mean = add_over_lanes<1, 32>(sum) / count;
    for (int k = lane_index(); k < count; k += 32) squares += (hidden[k] - mean) * (hidden[k] - mean);
    scale = 1 / sqrt(add_over_lanes<1, 32>(squares) / count + 1e-5);
  }
};

// A row of W1·ctx + b1, one warp a row, for up to kGcImages images side by side.
template <class A>
FGD_DEVICE void write_hidden(const HiddenInput<A>& net, int index) {
  const int rows = blocks_of(net.hidden, kGcRows), lane = lane_index();
  const int row = index % rows * kGcRows + warp_index(), first = index / rows * kGcImages;
  if (row >= net.hidden) return;
  const A* weight = net.w1 + int64_t{row} * net.channels;
  double sum[kGcImages] = {};
  for (int c = lane; c < net.channels; c += 32)
#pragma unroll
    for (int i = 0; i < kGcImages; ++i)
      if (first + i < net.images)
        sum[i] += static_cast<double>(weight[c]) * net.context[(first + i) * net.context_image + c];
  const double total = sum_over_lanes<kGcImages, 1, 32>(sum, lane);
  const int image = first + owned_sum<kGcImages, 1>(lane);
  if (lane < kGcImages && image < net.images)
    net.hidden_sums[int64_t{image} * net.hidden + row] = static_cast<A>(total + net.b1[row]);
}

// ∂L/∂v[n, c] = ±upstream·∂L_gl/∂r
template <class A>
struct AddedGrad {
  const A* shift_grad;
  int channels;
  A factor;
  FGD_DEVICE AddedGrad(const GcParams& p, const GcLevel& level, int net)
      : shift_grad(static_cast<const A*>(level.stats) + kStatShiftGrad * level.channels), channels(level.channels) {
    factor = static_cast<A>(static_cast<const A*>(p.upstream)[kGlobal] * (net ? -level.weight : level.weight));
  }
  FGD_DEVICE A operator()(int n, int c) const { return factor * shift_grad[int64_t{n} * kStats * channels + c]; }
};

}  // namespace fgd::cuda
