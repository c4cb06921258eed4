// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Draws the next step of a sequence from what the steps before have led to.
//!
//! Whatever changes a draw, or the order of draws, changes what every seed means: recorded transcripts are worth nothing
//! then.

use crate::candidate::{Candidates, Manner};
use crate::ledger::Ledger;
use crate::machine::Function;
use crate::operation::Step;
use crate::random::Random;

/// The weight of a sensible step among doubtful ones, so that there are few of these while there is little to doubt.
const RELUCTANCE: usize = 24;

/// Kinds of steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    OpenIommufd,
    OpenCdev,
    OpenGroup,
    Hand,
    Bind,
    BindAgain,
    Release,
    Close,
    AllocateIoas,
    AdoptIoas,
    DropIoas,
    AllocateHwpt,
    DropHwpt,
    Attach,
    Detach,
    Map,
    Unmap,
    IovaRanges,
    HotResetInfo,
    HotReset,
    Reset,
    ReadCommand,
    WriteCommand,
    ReadBar,
    Kill,
    BindDriver,
    UnbindDriver,
}

const KINDS: [Kind; 27] = [
    Kind::OpenIommufd,
    Kind::OpenCdev,
    Kind::OpenGroup,
    Kind::Hand,
    Kind::Bind,
    Kind::BindAgain,
    Kind::Release,
    Kind::Close,
    Kind::AllocateIoas,
    Kind::AdoptIoas,
    Kind::DropIoas,
    Kind::AllocateHwpt,
    Kind::DropHwpt,
    Kind::Attach,
    Kind::Detach,
    Kind::Map,
    Kind::Unmap,
    Kind::IovaRanges,
    Kind::HotResetInfo,
    Kind::HotReset,
    Kind::Reset,
    Kind::ReadCommand,
    Kind::WriteCommand,
    Kind::ReadBar,
    Kind::Kill,
    Kind::BindDriver,
    Kind::UnbindDriver,
];

/// What kind of sequence it becomes.
#[derive(Debug)]
pub(crate) struct Plan {
    /// How many steps it has.
    pub(crate) length: usize,
    /// How many processes there are.
    pub(crate) actors: usize,
    /// How many contexts there may be at once: only where there is one does everything come to be in one.
    pub(crate) contexts: usize,
    /// How many steps of a hundred are to be doubtful ones. Some of the sensible ones fail as well.
    doubtful: usize,
}

impl Plan {
    pub(crate) fn draw(random: &mut Random) -> Self {
        Self {
            // Rather many than few.
            length: 10 + random.below(31).max(random.below(31)),
            actors: 2 + random.below(2),
            contexts: random.pick(&[1, 1, 2, 2, 3]),
            doubtful: random.pick(&[30, 70, 90]),
        }
    }

    /// The next step.
    pub(crate) fn next_step(&self, random: &mut Random, ledger: &Ledger) -> Step {
        let doubtful = random.chance(self.doubtful);
        let step = if doubtful { self.draw_step(random, ledger, Manner::Doubtful) } else { None };
        step.or_else(|| self.draw_step(random, ledger, Manner::Sensible))
            .expect("something can be opened, closed or killed")
    }

    /// Draws a kind among those that have candidates, then one of them.
    fn draw_step(&self, random: &mut Random, ledger: &Ledger, manner: Manner) -> Option<Step> {
        let mut kinds = match manner {
            Manner::Sensible => Vec::new(),
            Manner::Doubtful => vec![(Vec::new(), RELUCTANCE)],
        };
        for kind in KINDS {
            let steps = candidates(kind, Candidates { plan: self, ledger, manner, random });
            if !steps.is_empty() {
                let weight = match manner {
                    Manner::Sensible => self.sensible_weight(kind, ledger),
                    Manner::Doubtful => doubtful_weight(kind),
                };
                kinds.push((steps, weight));
            }
        }
        let mut steps = random.weighted(kinds).filter(|steps| !steps.is_empty())?;
        let chosen = random.below(steps.len());
        Some(steps.swap_remove(chosen))
    }

    /// All that is interesting needs bound and attached devices, so what leads there comes first. Where there is only one
    /// context, all devices are to be in it.
    fn sensible_weight(&self, kind: Kind, ledger: &Ledger) -> usize {
        let bound = || ledger.cdevs.values().filter_map(|cdev| cdev.binding.as_ref());
        match kind {
            Kind::OpenIommufd if ledger.iommufds.is_empty() => 160,
            Kind::AllocateIoas if !ledger.without_ioas().is_empty() => 60,
            Kind::AllocateIoas if ledger.ioases.is_empty() => 30,
            Kind::Attach if bound().any(|binding| binding.attachment.is_none()) => 60,
            Kind::Bind if self.contexts == 1 => 240,
            Kind::Bind => 80,
            Kind::AllocateHwpt if ledger.hwpts.is_empty() => 30,
            Kind::OpenCdev if self.contexts == 1 => 160,
            Kind::OpenCdev => 24,
            Kind::Unmap if ledger.ioases.values().any(|ioas| ioas.is_spoilt) => 24,
            Kind::HotResetInfo | Kind::HotReset => 20,
            Kind::UnbindDriver if ledger.functions.iter().any(Function::has_kernel_driver) => 16,
            Kind::OpenIommufd => 16,
            Kind::AllocateHwpt | Kind::Attach | Kind::Map | Kind::IovaRanges | Kind::BindDriver => 10,
            Kind::AllocateIoas | Kind::DropHwpt | Kind::Reset | Kind::UnbindDriver => 6,
            Kind::Hand
            | Kind::Close
            | Kind::AdoptIoas
            | Kind::Detach
            | Kind::Unmap
            | Kind::ReadCommand
            | Kind::WriteCommand
            | Kind::ReadBar => 4,
            Kind::Kill => 3,
            Kind::OpenGroup | Kind::Release | Kind::DropIoas => 2,
            Kind::BindAgain => 0,
        }
    }
}

fn doubtful_weight(kind: Kind) -> usize {
    match kind {
        Kind::Bind => 16,
        Kind::Attach | Kind::Map => 12,
        Kind::AllocateHwpt | Kind::DropHwpt | Kind::Unmap | Kind::HotReset | Kind::Reset => 8,
        Kind::BindAgain | Kind::DropIoas => 5,
        Kind::AdoptIoas | Kind::OpenGroup | Kind::Hand | Kind::OpenCdev | Kind::Detach => 3,
        Kind::OpenIommufd => 1,
        // There is nothing to doubt about these.
        Kind::Release
        | Kind::Close
        | Kind::AllocateIoas
        | Kind::IovaRanges
        | Kind::HotResetInfo
        | Kind::ReadCommand
        | Kind::WriteCommand
        | Kind::ReadBar
        | Kind::Kill
        | Kind::BindDriver
        | Kind::UnbindDriver => 0,
    }
}

fn candidates(kind: Kind, candidates: Candidates<'_>) -> Vec<Step> {
    match kind {
        Kind::OpenIommufd => candidates.open_iommufd(),
        Kind::OpenCdev => candidates.open_cdev(),
        Kind::OpenGroup => candidates.open_group(),
        Kind::Hand => candidates.hand(),
        Kind::Bind => candidates.bind(),
        Kind::BindAgain => candidates.bind_again(),
        Kind::Release => candidates.release(),
        Kind::Close => candidates.close(),
        Kind::AllocateIoas => candidates.allocate_ioas(),
        Kind::AdoptIoas => candidates.adopt_ioas(),
        Kind::DropIoas => candidates.drop_ioas(),
        Kind::AllocateHwpt => candidates.allocate_hwpt(),
        Kind::DropHwpt => candidates.drop_hwpt(),
        Kind::Attach => candidates.attach(),
        Kind::Detach => candidates.detach(),
        Kind::Map => candidates.map(),
        Kind::Unmap => candidates.unmap(),
        Kind::IovaRanges => candidates.iova_ranges(),
        Kind::HotResetInfo => candidates.hot_reset_info(),
        Kind::HotReset => candidates.hot_reset(),
        Kind::Reset => candidates.reset(),
        Kind::ReadCommand => candidates.read_command(),
        Kind::WriteCommand => candidates.write_command(),
        Kind::ReadBar => candidates.read_bar(),
        Kind::Kill => candidates.kill(),
        Kind::BindDriver => candidates.bind_driver(),
        Kind::UnbindDriver => candidates.unbind_driver(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::Answer;
    use crate::machine::DrivenBy;
    use crate::name::ActorName;
    use crate::operation::Operation;

    /// Four functions in three IOMMU groups.
    fn functions() -> Vec<Function> {
        let function = |(number, iommu_group): (u8, u32)| Function {
            address: vfio::PciAddress::from_devfn(0, 1, number),
            iommu_group,
            driver: DrivenBy::Vfio,
            drivers: &["vfio-pci", "virtio-pci"],
        };
        [(0, 5), (1, 5), (2, 6), (3, 7)].map(function).to_vec()
    }

    /// A kernel that finds nothing wrong with anything.
    fn obey(step: &Step, number: u32) -> Answer {
        match step {
            Step::Act(_, Operation::Bind(..)) => {
                Answer::Bound { id: number.to_string(), has_function_reset: true, regions: 9, irqs: 5 }
            }
            Step::Act(_, Operation::AllocateIoas(..)) => Answer::Allocated { id: number },
            Step::BindDriver { driver: "vfio-pci", .. } => Answer::Driver(DrivenBy::Vfio),
            Step::BindDriver { driver, .. } => Answer::Driver(DrivenBy::Kernel((*driver).to_owned())),
            Step::UnbindDriver { .. } => Answer::Driver(DrivenBy::Nobody),
            _ => Answer::Done,
        }
    }

    /// The steps of a sequence, each with what was open before it.
    fn sequence(number: u64, mut visit: impl FnMut(&Step, &Ledger)) {
        let mut random = Random::of_sequence(1, number);
        let plan = Plan::draw(&mut random);
        assert!((10..=40).contains(&plan.length));
        let mut ledger = Ledger::new(ActorName::ALL[..plan.actors].to_vec(), functions());
        for number in 1..=plan.length {
            let step = plan.next_step(&mut random, &ledger);
            visit(&step, &ledger);
            ledger.record(&step, &Ok(obey(&step, u32::try_from(number).unwrap())));
        }
    }

    #[test]
    fn a_seed_means_what_it_has_always_meant() {
        // FNV-1a over all steps. When this must change, every recorded transcript is to be made anew.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for number in 0..100 {
            sequence(number, |step, _| {
                for byte in step.to_string().bytes() {
                    hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
                }
            });
        }
        assert_eq!(hash, 17_390_041_242_340_200_361);
    }

    #[test]
    fn no_step_takes_the_driver_of_an_open_function() {
        for number in 0..300 {
            sequence(number, |step, ledger| {
                if let Step::UnbindDriver { function } = step {
                    assert!(!ledger.is_open(*function), "{number}: {step}");
                }
            });
        }
    }

    #[test]
    fn every_kind_of_step_is_drawn() {
        let mut drawn = std::collections::BTreeSet::new();
        for number in 0..300 {
            sequence(number, |step, _| {
                drawn.extend(step.to_string().split(' ').nth(1).map(str::to_owned));
            });
        }
        // Binding again is a bind as well.
        assert_eq!(drawn.len(), KINDS.len() - 1, "{drawn:?}");
    }
}
