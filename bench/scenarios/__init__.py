"""One file for each scenario: `async def run(setup) -> Result`."""
