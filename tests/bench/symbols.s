# 500 000 functions, as a large program has them; never called.
	.macro one
	.globl	a_function_of_a_large_program_\@
	.type	a_function_of_a_large_program_\@, @function
a_function_of_a_large_program_\@:
	ret
	.size	a_function_of_a_large_program_\@, 1
	.endm

	.text
	.rept	500000
	one
	.endr

	.section .note.GNU-stack, "", @progbits
