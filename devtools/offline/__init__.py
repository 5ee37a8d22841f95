"""What can be known of the GPU kernels without a GPU: compiled for one, measured, and executed in devtools.ptx.

cuda_build     csrc/cuda/*.cu to PTX and through ptxas; the launch plans as a library (plan_shim.cpp)
cuda_device    the loss on the interpreter: what csrc/cuda/operator.cpp does on a GPU
host_memory    an interpreter whose addresses are this process's own (for operator_shim.cpp)
triton_build   the Triton kernels compiled for any target from the arguments that the launchers pass
triton_device  their launches executed on the interpreter
sass           their machine code, with the control words that schedule it
sass_model     a multiprocessor that plays their tile loops through
measures       the interpreter's counters in the units of the budgets
kernel_names   how the kernels' names begin, for profilers and sanitizers
"""
