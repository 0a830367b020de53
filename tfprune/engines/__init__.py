"""From a network to the files and engines that it runs in, and how fast it runs there."""
