//! x86-64, System V calling convention: arguments, result and pointers of the
//! interrupted function.

use core::ffi::c_void;

use aya_ebpf::{EbpfContext, bindings::pt_regs};

/// Registers of the target's thread at a probe.
#[derive(Clone, Copy)]
pub struct Registers(*const pt_regs);

macro_rules! register {
    ($regs:expr, $name:ident) => {
        // Volatile: moved behind a branch and merged into one load through a
        // computed pointer, these would be rejected by the verifier.
        // SAFETY: the kernel's context is valid while the program runs.
        unsafe { core::ptr::addr_of!((*$regs.0).$name).read_volatile() }
    };
}

impl Registers {
    /// Wraps a program's context.
    #[inline(always)]
    pub fn new(regs: *const pt_regs) -> Self {
        Self(regs)
    }
    /// The arguments that come in registers; only at entry.
    #[inline(always)]
    pub fn arguments(self) -> Arguments {
        Arguments {
            a0: register!(self, rdi),
            a1: register!(self, rsi),
            a2: register!(self, rdx),
            a3: register!(self, rcx),
            a4: register!(self, r8),
            a5: register!(self, r9),
        }
    }
    /// What the function returns; only at its return.
    #[inline(always)]
    pub fn result(self) -> u64 {
        register!(self, rax)
    }
    /// At entry the return address is there; at return it has been popped.
    #[inline(always)]
    pub fn stack_pointer(self) -> u64 {
        register!(self, rsp)
    }
    /// The caller's frame pointer, if it keeps one.
    #[inline(always)]
    pub fn frame_pointer(self) -> u64 {
        register!(self, rbp)
    }
    /// Address of the probed instruction.
    #[inline(always)]
    pub fn instruction_pointer(self) -> u64 {
        register!(self, rip)
    }
}

impl EbpfContext for Registers {
    fn as_ptr(&self) -> *mut c_void {
        self.0.cast_mut().cast()
    }
}

/// A call's arguments, all read at once: which one is wanted is known only
/// from the cookie, and a load at a computed place is rejected.
#[derive(Clone, Copy)]
pub struct Arguments {
    a0: u64,
    a1: u64,
    a2: u64,
    a3: u64,
    a4: u64,
    a5: u64,
}

impl Arguments {
    /// Argument `number`, counted from 0.
    #[inline(always)]
    pub fn get(self, number: u8) -> u64 {
        match number {
            0 => self.a0,
            1 => self.a1,
            2 => self.a2,
            3 => self.a3,
            4 => self.a4,
            _ => self.a5,
        }
    }
}

/// How far a call moves the stack pointer: by the return address.
pub const RETURN_ADDRESS_SIZE: u64 = 8;
