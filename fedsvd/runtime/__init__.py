"""What both apps load of one configuration, once a process: `data`, and the `model` over it."""
