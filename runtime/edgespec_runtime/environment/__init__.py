"""What is installed on this machine, for bug reports, and what is wrong with it.

place       where things are looked for: this machine, or a recorded tree of another
system      operating system, board, processor, memory, swap
debs        Debian packages
jetson      JetPack, Jetson Linux, power modes
clocks      whether clocks are locked
libraries   shared libraries by their names, and the folders they may lie in
elf         what a shared library needs, and which GPUs it has machine code for
nvidia      GPU, driver, CUDA, TensorRT
packages    Python packages, ours and builds of onnxruntime
facts       all of it together
block       the facts as text
check       one finding: ok, a warning or a problem, and the commands that help
remedies    what to install on which platform
doctor      the checks of a machine
bundles     the checks of a bundle and a profile on this machine
"""
