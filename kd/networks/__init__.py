"""Networks: built, loaded, saved and measured, with encoders divided into blocks that can be unfrozen."""
