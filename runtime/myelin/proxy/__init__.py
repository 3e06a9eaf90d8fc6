"""The proxy in front of a deployer's versions: public routes, a URL for every version, weights, graphs."""
