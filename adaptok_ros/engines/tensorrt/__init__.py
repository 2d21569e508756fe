"""TensorRT 8.6 to 11 and TensorRT-RTX.

They differ in what there is to set when an engine is built, and are asked for it instead of for
their version: 8.6 wants EXPLICIT_BATCH and has no strong types; 11 and RTX have nothing else; RTX
compiles for a compute capability, without a GPU, and to machine code when an engine is loaded.
What runs an engine is the same in all of them.
"""
