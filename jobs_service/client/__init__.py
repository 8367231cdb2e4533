"""The client kit: calls the Jobs Service from Python, synchronously or with asyncio."""
