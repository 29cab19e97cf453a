"""The extensions that come with loraprobe, a folder each. `loraprobe.wiring` lists them."""
