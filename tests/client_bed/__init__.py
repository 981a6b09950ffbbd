"""What the client library is tested against: a broker that keeps the public contract, in memory."""
