"""SikkerAPI over HTTP: connections, the blacklist, reports. The only room that knows httpx."""
