# Functions with a million unwind rows, as a large program has them; never
# called. Their frames are of 64 sizes, which are as many rules.
	.macro	leave_function
	addq	$room, %rsp
	.cfi_def_cfa_offset 24
	popq	%rbx
	.cfi_def_cfa_offset 16
	popq	%rbp
	.cfi_def_cfa_offset 8
	ret
	.endm

	.text
	.set	room, 136
	.rept	91000
	.set	room, 136 + (room + 16) % 1024
	.cfi_startproc
	pushq	%rbp
	.cfi_def_cfa_offset 16
	.cfi_offset %rbp, -16
	pushq	%rbx
	.cfi_def_cfa_offset 24
	.cfi_offset %rbx, -24
	subq	$room, %rsp
	.cfi_def_cfa_offset room + 24
	.skip	32, 0x90
	.cfi_remember_state
	leave_function
	.cfi_restore_state
	.skip	32, 0x90
	leave_function
	.cfi_endproc
	.endr

	.section .note.GNU-stack, "", @progbits
