"""What the disassembler is made of: register widths, the flow through the code, the text of an instruction."""
