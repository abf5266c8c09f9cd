"""Tables of data sets, architectures and parts. They import no torch and know nothing of a study."""
