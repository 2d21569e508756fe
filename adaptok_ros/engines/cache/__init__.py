"""The private cache of built engines.

An engine is executable code: whoever can write it runs with the rights of the node. So engines lie
in a folder that only its owner can write, which is checked whenever it is opened, and a plan is
compared with its manifest before anything looks into it. Needs neither torch nor TensorRT.
"""
