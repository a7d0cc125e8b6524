"""HTTP and gRPC in front of a ranker: both decode, call one `Service`, and encode."""
