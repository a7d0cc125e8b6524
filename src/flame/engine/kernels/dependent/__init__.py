"""Programmatic dependent launches: a kernel begins while the one before it in the stream still runs (from 9.0 on).

So the latency of its launch, and what it does before it waits, are hidden. What holds for every kernel that is launched
so:

- Every program waits (`griddepcontrol.wait`) for the kernel before, which is complete and visible then. It waits before
  it touches anything that a kernel of the launch writes, to read or to write, and also where it leaves at once.
- A program lets the kernel behind it begin (`griddepcontrol.launch_dependents`) only when it has waited, or by its end.
  The kernel behind begins when all programs have come so far: therefore all kernels but the one just before it are
  complete when a kernel begins, and at most two of a launch are on the machine at a time.
- All programs of a kernel have their places when the one behind it begins, so that none of them can be kept from its
  place by a program that waits for it.

Before it waits a kernel may read what no kernel of a launch writes: weights, and addresses of states, which a copy
wrote. Only a kernel follows a kernel in this way, so the copy was complete when the first began. The first, which is no
dependent itself, gathers the packed words; the second, tokens, waits before it reads them, and when the others begin
the first is complete.
It may also read what the last kernel but one has written, as that one is complete: a stack that scores looks at the
lengths in states, between which and any encode there is a launch of tokens.

To let the kernel behind begin early does not always pay: its programs take what places are free at that time, several
on one multiprocessor where one on each would have been faster. So it is done by small kernels, and before kernels that
have a multiprocessor for each program; the others let it begin by their end, when all places are free.
"""
