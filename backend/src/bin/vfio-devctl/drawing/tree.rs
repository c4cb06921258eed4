// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A drawing as text: the tree, and beside it what is reset together and what is in one IOMMU group.

use super::{Drawing, Row, Span};

/// What a row consists of, besides its scopes and its group.
const COLUMNS: usize = 5;

impl Drawing {
    /// The lines, and a legend.
    pub(crate) fn text(&self) -> String {
        let cells: Vec<_> = self.rows.iter().map(Row::cells).collect();
        let length = |cell: Option<&String>| cell.map_or(0, |cell| cell.chars().count());
        let width = |column| cells.iter().map(|row| length(row.get(column))).max().unwrap_or(0);
        let widths: Vec<_> = (0..COLUMNS).map(width).collect();
        let mut lines = vec![self.titles(&widths)];
        for (place, row) in cells.iter().enumerate() {
            let columns = row.iter().zip(&widths).filter(|(_, width)| **width > 0);
            let padded = columns.map(|(cell, width)| format!("{cell:width$}"));
            let marks = [self.scope_lanes(place), self.group_lanes(place)];
            lines.push(padded.chain(marks).collect::<Vec<_>>().join("  "));
        }
        if !self.scopes.is_empty() {
            lines.push(String::new());
        }
        lines.extend(self.scopes.iter().map(super::Scope::legend));
        lines.iter().map(|line| line.trim_end().to_owned() + "\n").collect()
    }

    fn titles(&self, widths: &[usize]) -> String {
        let left: usize = widths.iter().filter(|width| **width > 0).map(|width| width + 2).sum();
        let lanes = self.scope_lanes(0).chars().count();
        format!("{:left$}{:lanes$}  group", "", "reset")
    }

    /// Which scopes a row is in: at the first row of each there is its letter.
    fn scope_lanes(&self, place: usize) -> String {
        let width = self.scopes.iter().map(|scope| scope.name.chars().count()).max().unwrap_or(0);
        let lane = |lane| {
            let mut in_lane = self.scopes.iter().filter(move |scope| scope.span.lane == lane);
            let covering = in_lane.find(|scope| scope.span.covers(place));
            covering.map_or(String::new(), |scope| match scope.span.glyph(place) {
                '┐' | '─' => scope.name.clone(),
                glyph => glyph.to_string(),
            })
        };
        let lanes = 0..self.scopes.iter().map(|scope| scope.span.lane + 1).max().unwrap_or(0);
        let lanes: Vec<_> = lanes.map(|number| format!("{:width$}", lane(number))).collect();
        // As wide as its title.
        format!("{:5}", lanes.join(" "))
    }

    /// The row's group, and where others of it are.
    fn group_lanes(&self, place: usize) -> String {
        let number = self.rows.get(place).and_then(|row| row.iommu_group);
        let number = number.map_or(String::new(), |number| number.to_string());
        let lane = |lane| {
            let mut in_lane = self.groups.iter().filter(move |group| group.span.lane == lane);
            in_lane.find(|group| group.span.covers(place)).map_or(' ', |group| group.span.glyph(place))
        };
        let lanes: String =
            (0..self.groups.iter().map(|group| group.span.lane + 1).max().unwrap_or(0)).map(lane).collect();
        format!("{number:>5} {lanes}")
    }
}

impl Row {
    fn cells(&self) -> [String; COLUMNS] {
        [
            self.branch() + &self.address.to_string(),
            self.what.clone(),
            self.driver.clone(),
            self.vfio_device.clone(),
            self.mark.text.clone(),
        ]
    }

    /// The branches that lead to it; those of the root buses are left out.
    fn branch(&self) -> String {
        let Some((own, above)) = self.ends.split_last().filter(|(_, above)| !above.is_empty()) else {
            return String::new();
        };
        let above = above.iter().skip(1).map(|ends| if *ends { "   " } else { "│  " });
        above.chain([if *own { "└─ " } else { "├─ " }]).collect()
    }
}

impl Span {
    fn covers(&self, place: usize) -> bool {
        (self.first()..=self.last()).contains(&place)
    }

    /// How it looks at a row between its first and its last.
    fn glyph(&self, place: usize) -> char {
        match (place == self.first(), place == self.last()) {
            (true, true) => '─',
            (true, false) => '┐',
            (false, true) => '┘',
            (false, false) if self.rows.contains(&place) => '┤',
            (false, false) => '│',
        }
    }
}
