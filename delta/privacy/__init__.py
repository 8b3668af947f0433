"""Privacy of shared updates: noise with a price tag, and sums that show no summand. No sockets, threads or clocks."""
