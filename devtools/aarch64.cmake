# Cross-compile for aarch64 and run the tests in an emulator, as Debian's packages g++-aarch64-linux-gnu and qemu-user
# allow:  cmake -S . -B build/aarch64 --toolchain devtools/aarch64.cmake -DFGD_BUILD_OPERATOR=OFF -DFGD_BUILD_TESTS=ON
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
if(NOT CMAKE_CXX_COMPILER)
  set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
endif()
set(CMAKE_CXX_COMPILER_TARGET aarch64-linux-gnu)  # for Clang, which compiles for any
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64 -L /usr/aarch64-linux-gnu)
