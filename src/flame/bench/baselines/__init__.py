"""The models as a good PyTorch user would write them for a GPU: what the fused engine is compared with.

They hold the weights of `flame.engine.models` in one precision, take whole launches and are written for full
histories, which is what the benchmark measures: their attention masks are constants, where ours reads lengths.
"""
