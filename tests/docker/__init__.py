"""The docker tier: the image from the Dockerfile, run by Docker Compose on a host whose network is a namespace."""
