"""Distributed data parallel over gloo: two processes with half a batch each do what one does with all of it."""

import os

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from cases import BALANCED, Case, make_inputs

CASE = Case("ddp", ((8, 9, 9), (8, 4, 4)), (3, 0, 2, 1), student_channels=6, loss=BALANCED)


def gradients(rank: int, world: int) -> dict:
    torch.manual_seed(0)
    student, teacher, boxes, sizes, criterion = make_inputs(CASE)
    half = slice(rank * 4 // world, (rank + 1) * 4 // world)
    model = torch.nn.parallel.DistributedDataParallel(criterion) if world > 1 else criterion
    losses = model([s[half] for s in student], [t[half] for t in teacher], boxes[half], sizes[half])
    sum(losses.values()).backward()
    return {name: p.grad.clone() for name, p in criterion.named_parameters()}


def worker(rank: int, world: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    torch.set_num_threads(1)
    found = gradients(rank, world)
    if rank == 0:
        torch.save(found, os.path.join(folder, "gradients.pt"))
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    mp.spawn(worker, (2, str(tmp_path)), nprocs=2)
    found = torch.load(tmp_path / "gradients.pt", weights_only=True)
    torch.testing.assert_close(found, gradients(0, 1), rtol=1e-4, atol=1e-6)
