"""Teachers trained elsewhere: their files, how each kind is run, and the adapter to this project's interface."""
