"""Finding nodes on the local network: what they announce, who of them is a peer, and where peers have moved."""
