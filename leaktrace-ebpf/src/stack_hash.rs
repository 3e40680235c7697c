//! Two independent hashes of a stack: the id, and the check that tells apart
//! stacks with the same id.

/// Every value is mixed into both by a multiplication with an odd constant
/// (those of xxHash64's primes) and a shift, so that neither is a function of
/// the other.
#[derive(Clone, Copy)]
pub struct StackHash(pub [u64; 2]);

impl StackHash {
    pub const SEED: Self = Self([0x27d4_eb2f_1656_67c5, 0x1656_67b1_9e37_79f9]);

    #[inline(always)]
    pub fn mix(&mut self, value: u64) {
        let [id, check] = &mut self.0;
        *id = (*id ^ value).wrapping_mul(0x9e37_79b1_85eb_ca87);
        *id ^= *id >> 32;
        *check = (check.rotate_left(27) ^ value).wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
        *check ^= *check >> 29;
    }

    /// The id and the check of a stack that ended so.
    #[inline(always)]
    pub fn finish(mut self, end: u64) -> (u64, u64) {
        self.mix(end);
        let [id, check] = self.0;
        // Small ids are reserved (see NOT_STORED); a check of 0 means unknown.
        (id | 1 << 63, check | 1)
    }
}
