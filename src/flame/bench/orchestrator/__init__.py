"""`flame bench orchestrator`: what the policies of planning make of mixed traffic on one engine, in this process.

One engine is built with all profiles; an orchestrator for each policy runs on it, in turns with the others, and gets
the same requests: full histories, each its own user's unless reuse is what is asked, candidate counts by a
distribution. Requests pass admission and are submitted as a `Ranker` does it; features are packed beforehand. A row
has the medians of several rounds.

Rows, by `what`:

engine alone  full launches back to back on as many threads as there are executors, no queue: the yardstick
capacity      a closed loop that always has enough requests in the queue: the throughput of a policy
open loop     Poisson arrivals at a share of a capacity, of the first policy's (the same load for all) and of the own
overload      Poisson arrivals at a multiple of the capacity, with deadlines: what still comes in time, and memory
zipf          a closed loop in which users come again by a Zipf law, and with them their histories
reuse         one request at a time, every history twice with other candidates: device time of the first and second
overhead      a closed loop over an engine that does nothing: processor time of all but the model, per request, the
              generator's own part of it told apart
planner       planning alone, requests cut into batches as the schedule cuts a queue

Latencies count from the moment a request was meant to be sent, so a stall shows in all that should have been sent
during it, and the sender's own lag too: a row whose sender was late says so. `goodput` counts answers within the
deadline. `busy_share` is the share of the time in which at least one engine call ran, seen by the host; `running` is
how many ran on average. `padding_waste` is the share of candidate slots of all launches that held no candidate.
"""
