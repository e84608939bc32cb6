"Tools that build what the repository publishes beside the package: the docs site and the README."
