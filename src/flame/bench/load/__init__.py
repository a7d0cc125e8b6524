"""The load generator: requests sent to a running server in open or closed loop, and what came back.

Open loop: requests arrive by a Poisson process whether or not the server keeps up, and the latency of each counts from
the moment it was *meant* to be sent. A stall therefore shows in every request that should have gone out during it (no
coordinated omission). Closed loop: a fixed number of callers, each sending its next request when its last was answered;
that measures capacity, and its latencies say little about open traffic.
"""
