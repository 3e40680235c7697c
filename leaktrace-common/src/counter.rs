//! Everything that is counted, in one list: the programs increment by name,
//! reports print text from here, and the JSON has all of them.

/// What a non-zero counter says about the totals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing is missing; the counter only tells what was seen.
    None,
    /// Blocks may be missing: totals are a lower bound.
    Lost,
    /// Blocks may be there that were given back, or be counted at a wrong
    /// place: totals are inexact.
    Inexact,
}

macro_rules! counters {
    ($( $(#[$doc:meta])* $variant:ident, $name:literal, $effect:ident, $one:literal, $many:literal; )*) => {
        /// One counter, named after the event it counts.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Counter { $( #[doc = $many] $variant, )* }

        impl Counter {
            /// Every counter, in the order of its index.
            pub const ALL: &'static [Self] = &[ $( Self::$variant, )* ];

            /// Its key in the JSON report.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $( Self::$variant => $name, )* }
            }
            /// What it does to the totals.
            #[must_use]
            pub const fn effect(self) -> Effect {
                match self { $( Self::$variant => Effect::$effect, )* }
            }
            /// What happened, for a person; follows the number, `value`.
            #[must_use]
            pub const fn text(self, value: u64) -> &'static str {
                match (self, value) {
                    $( (Self::$variant, 1) => $one, (Self::$variant, _) => $many, )*
                }
            }
        }
    };
}

counters! {
    AllocCalls, "alloc_calls", None,
        "call that asks for memory",
        "calls that ask for memory";
    FreeCalls, "free_calls", None,
        "call that gives memory back",
        "calls that give memory back";
    FreeNull, "free_null", None,
        "free of NULL, which does nothing",
        "frees of NULL, which do nothing";
    UnknownFree, "unknown_free", None,
        "free of a block that was not recorded (from before attaching, filtered or lost)",
        "frees of blocks that were not recorded (from before attaching, filtered or lost)";
    FailedAlloc, "failed_alloc", None,
        "allocation that the allocator refused",
        "allocations that the allocator refused";
    Filtered, "filtered", None,
        "allocation left out by the size filter",
        "allocations left out by the size filter";
    TailCall, "tail_call", None,
        "call that went on in another watched function (reallocarray in realloc), counted once",
        "calls that went on in another watched function (reallocarray in realloc), counted once";
    NestedCall, "nested_call", None,
        "call made by the allocator itself, counted as part of the outer call",
        "calls made by the allocator itself, counted as part of the outer call";
    Vfork, "vfork", Inexact,
        "vfork child, which shares the memory: its own calls were not seen",
        "vfork children, which share the memory: their own calls were not seen";
    Silent, "silent_period", Inexact,
        "time that calls may have gone unseen, until it was noticed that the probes were silent or gone",
        "times that calls may have gone unseen, until it was noticed that the probes were silent or gone";
    Unwatched, "unwatched_function", Inexact,
        "function of a watched allocator that could not be watched",
        "functions of a watched allocator that could not be watched";
    LateAllocator, "late_allocator", Inexact,
        "file with an allocator that was loaded after the probes were set: its calls were not seen",
        "files with an allocator that were loaded after the probes were set: their calls were not seen";
    ProgramSkipped, "program_skipped", Inexact,
        "call at which the kernel did not run leaktrace's program, since another one was running (recursion_misses)",
        "calls at which the kernel did not run leaktrace's program, since another one was running (recursion_misses)";
    Exec, "exec", None,
        "time that the process replaced itself by exec",
        "times that the process replaced itself by exec";
    ExitInCall, "exit_in_call", Inexact,
        "thread that ended inside a call",
        "threads that ended inside a call";
    StaleInFlight, "stale_in_flight", Inexact,
        "call left without returning (longjmp, an exception)",
        "calls left without returning (longjmp, an exception)";
    NestedAlloc, "nested_alloc", Inexact,
        "allocation inside an allocation (a signal handler?), counted as part of the outer call",
        "allocations inside an allocation (a signal handler?), counted as part of the outer call";
    ReplacedBlock, "replaced_block", Inexact,
        "block whose free was not seen: its address was handed out again",
        "blocks whose free was not seen: their address was handed out again";
    BadOutPointer, "bad_out_pointer", Lost,
        "result that could not be read through the out-pointer",
        "results that could not be read through the out-pointer";
    SizeTooLarge, "size_too_large", Inexact,
        "size over 2^48-1 bytes, recorded as that",
        "sizes over 2^48-1 bytes, recorded as that";
    StackNotStored, "stack_not_stored", None,
        "allocation accounted to \"stack not stored\"",
        "allocations accounted to \"stack not stored\"";
    SumMissing, "sum_missing", Inexact,
        "block that no sum exists for",
        "blocks that no sum exists for";
    LiveFull, "live_full", Lost,
        "block not recorded: table of live blocks full (--max-blocks)",
        "blocks not recorded: table of live blocks full (--max-blocks)";
    LiveNoMemory, "live_no_memory", Lost,
        "block not recorded: kernel out of memory (ENOMEM)",
        "blocks not recorded: kernel out of memory (ENOMEM)";
    LiveBusy, "live_busy", Lost,
        "block not recorded: map busy (EBUSY)",
        "blocks not recorded: map busy (EBUSY)";
    LiveDeadlock, "live_deadlock", Lost,
        "block not recorded: lock refused (EDEADLK)",
        "blocks not recorded: lock refused (EDEADLK)";
    LiveTimedOut, "live_timed_out", Lost,
        "block not recorded: lock timed out (ETIMEDOUT)",
        "blocks not recorded: lock timed out (ETIMEDOUT)";
    LiveOther, "live_other_error", Lost,
        "block not recorded: other error",
        "blocks not recorded: other error";
    FreeBusy, "free_busy", Inexact,
        "free not carried out: map busy (EBUSY)",
        "frees not carried out: map busy (EBUSY)";
    FreeDeadlock, "free_deadlock", Inexact,
        "free not carried out: lock refused (EDEADLK)",
        "frees not carried out: lock refused (EDEADLK)";
    FreeTimedOut, "free_timed_out", Inexact,
        "free not carried out: lock timed out (ETIMEDOUT)",
        "frees not carried out: lock timed out (ETIMEDOUT)";
    FreeOther, "free_other_error", Inexact,
        "free not carried out: other error",
        "frees not carried out: other error";
    FreeRetried, "free_retried", None,
        "free carried out at the second try",
        "frees carried out at the second try";
    InFlightFull, "in_flight_full", Lost,
        "call not followed: table of threads full",
        "calls not followed: table of threads full";
    InFlightOther, "in_flight_other_error", Lost,
        "call not followed: other error",
        "calls not followed: other error";
    StackTableFull, "stack_table_full", None,
        "stack not stored: table full (--max-stacks)",
        "stacks not stored: table full (--max-stacks)";
    StackTableOther, "stack_table_other_error", None,
        "stack not stored: other error",
        "stacks not stored: other error";
    StackCollision, "stack_collision", None,
        "stack not stored: another one has the same hash",
        "stacks not stored: another one has the same hash";
    StackChanged, "stack_changed", None,
        "stack cut after the caller: it changed, or the mappings did, while it was walked",
        "stacks cut after the caller: they changed, or the mappings did, while they were walked";
}

/// How many counters there are.
pub const COUNTERS: usize = Counter::ALL.len();

/// Rows and columns of the table of nested calls: the roles, rounded up to a
/// power of two.
pub const NESTED_ROLES: usize = 8;
const _: () = assert!(crate::function::Role::COUNT <= NESTED_ROLES);

/// Value of the per-CPU counter map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CounterBlock {
    /// By [`Counter`] index.
    pub events: [u64; COUNTERS],
    /// Calls inside calls, by outer and inner [`crate::function::Role`].
    pub nested: [[u64; NESTED_ROLES]; NESTED_ROLES],
}

impl Default for CounterBlock {
    fn default() -> Self {
        Self {
            events: [0; COUNTERS],
            nested: [[0; NESTED_ROLES]; NESTED_ROLES],
        }
    }
}

#[cfg(feature = "user")]
// SAFETY: integers only, no padding, every bit pattern is valid.
unsafe impl aya::Pod for CounterBlock {}
