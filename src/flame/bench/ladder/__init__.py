"""`flame bench engine` on a GPU: a ladder of ways to run one model, from eager PyTorch to the fused engine.

Method. For each scenario and number of users one packed input is drawn, full histories, on the device. Every variant
is built for that shape and runs once; what it gives is compared with the fp32 oracle on the same device, and one that
is out of its precision's tolerance, or cannot run, gets a row with the reason and no times. The rest are measured in
interleaved rounds together with a product of two 8192 x 8192 bf16 matrices of random numbers.

`ms_median`, `ms_p99`, `ms_min` are device time of one launch between two events, inputs and outputs in device memory:
a replay of the captured graph, or the launches one by one for a variant without one. `ms_launch` is what a launch of
the engine takes by the wall, copies from and to the host included. `part` is "model" (packed words in, scores out) or
"stack" (the layers alone, tokens in, rows of candidates out). `kind` is as on a CPU: rank, encode, score.

`tflops` counts needed work only (`flame.engine.flops`), `share_of_peak` is over the product's rate. `ratio` is over
`flex-graph` of the same scenario, users and part, `ratio_to_stack` over its stack alone, `ratio_to_best` over the
fastest of all PyTorch variants of the same part. `error` is the norm of the difference to the oracle's scores over the
norm of these, `error_max` the largest difference. `build_s` of a variant of PyTorch is its compilation, less what
variants before it in the same case have compiled already (ends of the model), and of ours that of all kernels, to the
first launch; further shapes need no further build.
"""
