//! Distinct rules and their numbers, in one file and over all files: among more
//! than a million rows only about a thousand rules differ.

use std::collections::HashMap;

use leaktrace_common::unwind::{GAP_RULE, MAX_RULES, Rule};

/// There is no number left ([`MAX_RULES`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {MAX_RULES} distinct rules")]
pub struct TooManyRules;

/// Slots of rules met lately, a power of two.
const RECENT: usize = 1 << 10;

/// Rules with their numbers; the first, [`GAP_RULE`], is always the one of
/// nothing known.
pub struct Rules {
    rules: Vec<Rule>,
    numbers: HashMap<Rule, u16>,
    /// Almost every look-up ends here. The map alone would do, but its hash,
    /// which a hostile file can't foresee, takes longer than all the rest.
    recent: Box<[(Rule, u16); RECENT]>,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            rules: vec![Rule::GAP],
            numbers: HashMap::from([(Rule::GAP, GAP_RULE)]),
            recent: Box::new([(Rule::GAP, GAP_RULE); RECENT]),
        }
    }
}

impl Rules {
    /// The number of a rule, a new one if it was never met.
    ///
    /// # Errors
    /// When all numbers are taken.
    pub fn number(&mut self, rule: Rule) -> Result<u16, TooManyRules> {
        let slot = slot(&rule);
        let (met, number) = self.recent[slot];
        if met == rule {
            return Ok(number);
        }
        let number = match self.numbers.get(&rule) {
            Some(number) => *number,
            None => {
                let number = self.rules.len();
                if number >= MAX_RULES {
                    return Err(TooManyRules);
                }
                let number = u16::try_from(number).map_err(|_| TooManyRules)?;
                self.rules.push(rule);
                self.numbers.insert(rule, number);
                number
            }
        };
        self.recent[slot] = (rule, number);
        Ok(number)
    }

    /// The numbers of a whole file's rules; none is added when not all can be.
    ///
    /// # Errors
    /// When there are not enough numbers left.
    pub fn number_all(&mut self, rules: &[Rule]) -> Result<Vec<u16>, TooManyRules> {
        let before = self.rules.len();
        let numbers = rules.iter().map(|rule| self.number(*rule)).collect();
        if numbers == Err(TooManyRules) {
            for rule in self.rules.drain(before..) {
                self.numbers.remove(&rule);
            }
            self.recent.fill((Rule::GAP, GAP_RULE));
        }
        numbers
    }

    /// Each rule, at its number.
    #[must_use]
    pub fn all(&self) -> &[Rule] {
        &self.rules
    }

    /// Gives up the numbers.
    #[must_use]
    pub fn into_all(self) -> Vec<Rule> {
        self.rules
    }
}

fn slot(rule: &Rule) -> usize {
    let kinds = u64::from(rule.cfa_kind) << 8 | u64::from(rule.fp_kind);
    let offsets = u64::from(rule.cfa_offset.cast_unsigned()) << 32
        | u64::from(rule.fp_offset.cast_unsigned());
    let mixed = (offsets ^ kinds << 20).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> (u64::BITS - RECENT.ilog2())) as usize
}

#[cfg(test)]
mod tests {
    use leaktrace_common::unwind::cfa;

    use super::*;

    fn rule(offset: i32) -> Rule {
        Rule {
            cfa_kind: cfa::SP,
            cfa_offset: offset,
            ..Rule::GAP
        }
    }

    #[test]
    fn equal_rules_have_one_number_and_gaps_number_0() {
        let mut rules = Rules::default();
        assert_eq!(rules.number(Rule::GAP), Ok(GAP_RULE));
        for round in 0..2 {
            for offset in 0..5000 {
                let number = rules.number(rule(offset)).unwrap();
                assert_eq!(i32::from(number), offset + 1, "in round {round}");
                assert_eq!(rules.all()[usize::from(number)], rule(offset));
            }
        }
        assert_eq!(rules.all().len(), 5001);
    }

    #[test]
    fn a_file_with_too_many_leaves_nothing_behind() {
        let mut rules = Rules::default();
        let first: Vec<Rule> = (0..16_000).map(rule).collect();
        rules.number_all(&first).unwrap();
        let second: Vec<Rule> = (15_900..17_000).map(rule).collect();
        assert_eq!(rules.number_all(&second), Err(TooManyRules));
        assert_eq!(rules.all().len(), 16_001);
        let third: Vec<Rule> = (20_000..20_383).map(rule).collect();
        let numbers = rules.number_all(&third).unwrap();
        assert_eq!(*numbers.first().unwrap(), 16_001);
        assert_eq!(usize::from(*numbers.last().unwrap()), MAX_RULES - 1);
        assert_eq!(rules.number(rule(16_500)), Err(TooManyRules));
        assert_eq!(rules.number_all(&first).unwrap()[7], 8);
    }
}
