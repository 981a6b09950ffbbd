"""The asyncio client library of quorumq."""
