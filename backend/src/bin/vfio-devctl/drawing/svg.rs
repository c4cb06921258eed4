// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A drawing as a picture: a box around what is reset together, a line through what is in one IOMMU group.

use super::{Drawing, Group, Row, Scope};

/// All lengths are in pixels.
const MARGIN: usize = 16;
const ROW: usize = 26;
const INDENT: usize = 24;
/// Of a character; the font is monospaced.
const CHARACTER: usize = 8;
const GAP: usize = 20;
const LANE: usize = 16;
/// By how much a box is larger than one within it.
const PADDING: usize = 6;

const STYLE: &str = "text { font: 13px ui-monospace, 'DejaVu Sans Mono', monospace; fill: #1f2328; } \
    .quiet { fill: #59636e; } .blocks { fill: #b3261e; font-weight: bold; } \
    .branch { stroke: #8c959f; fill: none; } \
    .scope { fill: #0969da; fill-opacity: 0.07; stroke: #0969da; stroke-width: 1.5; } \
    .never { fill: #b3261e; fill-opacity: 0.05; stroke: #b3261e; stroke-width: 1.5; stroke-dasharray: 6 4; }";
/// Of the groups, which also have their numbers.
const COLOURS: [&str; 6] = ["#8250df", "#1a7f37", "#bf5700", "#0b7285", "#a40e5e", "#57606a"];

/// Where the columns begin.
struct Columns {
    tree: usize,
    what: usize,
    driver: usize,
    mark: usize,
    scope: usize,
    group: usize,
    end: usize,
}

impl Drawing {
    /// The picture.
    pub(super) fn svg(&self) -> String {
        let columns = self.columns();
        let rows = self.rows.len();
        let legend = top(rows) + ROW / 2;
        let height = legend + ROW * self.scopes.len() + MARGIN;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} \
             {height}\" role=\"img\">\n<title>PCI functions, reset scopes and IOMMU groups</title>\n\
             <style>{STYLE}</style>\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n",
            width = columns.end + MARGIN,
        );
        // Outer boxes are drawn first.
        let mut scopes: Vec<_> = self.scopes.iter().collect();
        scopes.sort_by_key(|scope| std::cmp::Reverse(scope.span.lane));
        for scope in scopes {
            svg += &scope.shape(&columns);
        }
        svg += &text(columns.group, MARGIN + ROW / 2, "quiet", "IOMMU group");
        for (place, row) in self.rows.iter().enumerate() {
            svg += &self.branch(place, row, &columns);
            svg += &row.shape(place, &columns);
        }
        for (number, group) in self.groups.iter().enumerate() {
            svg += &group.shape(&columns, COLOURS.get(number % COLOURS.len()).copied().unwrap_or("#000000"));
        }
        for (number, scope) in self.scopes.iter().enumerate() {
            let class = if scope.is_possible { "quiet" } else { "blocks" };
            svg += &text(MARGIN, legend + ROW * number + ROW / 2, class, &scope.legend());
        }
        svg + "</svg>\n"
    }

    fn columns(&self) -> Columns {
        let widest = |length: &dyn Fn(&Row) -> usize| {
            let width = self.rows.iter().map(length).max().unwrap_or(0);
            if width == 0 { 0 } else { width * CHARACTER + GAP }
        };
        let length = |text: &str| text.chars().count();
        let scope_lanes = self.scopes.iter().map(|scope| scope.span.lane + 1).max().unwrap_or(0);
        let tree = MARGIN + PADDING * (scope_lanes + 1);
        let what = tree + widest(&|row| length(&row.address.to_string())) + INDENT * self.depth();
        let driver = what + widest(&|row| length(&row.what));
        let mark = driver + widest(&|row| length(&row.driver_and_device()));
        let scope = mark + widest(&|row| length(&row.mark.text));
        let names = self.scopes.iter().map(|scope| length(&scope.name)).max().unwrap_or(0);
        let group = scope + scope_lanes * (PADDING + names * CHARACTER) + GAP;
        let group_lanes = self.groups.iter().map(|group| group.span.lane + 1).max().unwrap_or(0);
        let legend = self.scopes.iter().map(|scope| length(&scope.legend())).max().unwrap_or(0) * CHARACTER;
        let end =
            (group + 11 * CHARACTER).max(group + 6 * CHARACTER + LANE * group_lanes).max(MARGIN + legend);
        Columns { tree, what, driver, mark, scope, group, end }
    }

    /// How many bridges are one behind the other.
    fn depth(&self) -> usize {
        self.rows.iter().map(|row| row.ends.len()).max().unwrap_or(1) - 1
    }

    /// The line from a bridge to what is behind it.
    fn branch(&self, place: usize, row: &Row, columns: &Columns) -> String {
        let above = self.rows.iter().take(place).rposition(|other| other.ends.len() + 1 == row.ends.len());
        let Some(above) = above else { return String::new() };
        let left = row.left(columns);
        let (x, from, to) = (left - INDENT / 2, middle(above) + 8, middle(place));
        format!("<path class=\"branch\" d=\"M{x} {from}V{to}H{}\"/>\n", left - 2)
    }
}

impl Row {
    /// Where it begins, by how many bridges are above it.
    fn left(&self, columns: &Columns) -> usize {
        columns.tree + INDENT * (self.ends.len() - 1)
    }

    fn driver_and_device(&self) -> String {
        if self.vfio_device.is_empty() {
            self.driver.clone()
        } else {
            format!("{} {}", self.driver, self.vfio_device)
        }
    }

    fn shape(&self, place: usize, columns: &Columns) -> String {
        let y = middle(place);
        let mark = if self.mark.blocks { "blocks" } else { "quiet" };
        let group = self.iommu_group.map_or("-".into(), |group| group.to_string());
        [
            text(self.left(columns), y, "", &self.address.to_string()),
            text(columns.what, y, "quiet", &self.what),
            text(columns.driver, y, "", &self.driver_and_device()),
            text(columns.mark, y, mark, &self.mark.text),
            text(columns.group, y, "", &group),
        ]
        .concat()
    }
}

impl Scope {
    /// A box; the further out its lane, the larger.
    fn shape(&self, columns: &Columns) -> String {
        let class = if self.is_possible { "scope" } else { "never" };
        let within = (columns.tree - MARGIN) / PADDING - 1 - self.span.lane;
        let width = CHARACTER * self.name.chars().count();
        let name = columns.scope + self.span.lane * (PADDING + width);
        let (left, right) = (MARGIN + PADDING * within, name + width + PADDING);
        let (upper, lower) = (top(self.span.first()) + 2, top(self.span.last() + 1) - 2 * within);
        let name_class = if self.is_possible { "" } else { "blocks" };
        format!(
            "<rect class=\"{class}\" x=\"{left}\" y=\"{upper}\" width=\"{}\" height=\"{}\" rx=\"6\"/>\n{}",
            right - left,
            lower - upper,
            text(name, middle(self.span.first()), name_class, &self.name)
        )
    }
}

impl Group {
    fn shape(&self, columns: &Columns, colour: &str) -> String {
        let x = columns.group + 6 * CHARACTER + LANE * self.span.lane;
        let (first, last) = (middle(self.span.first()), middle(self.span.last()));
        let member = |row: &usize| format!("<circle cx=\"{x}\" cy=\"{}\" r=\"4\"/>", middle(*row));
        let members: String = self.span.rows.iter().map(member).collect();
        format!(
            "<g stroke=\"{colour}\" fill=\"{colour}\"><title>IOMMU group {}</title><path stroke-width=\"2\" d=\"M{x} \
             {first}V{last}\"/>{members}</g>\n",
            self.number
        )
    }
}

/// The upper edge of a row; below the titles.
const fn top(place: usize) -> usize {
    MARGIN + ROW + ROW * place
}

const fn middle(place: usize) -> usize {
    top(place) + ROW / 2
}

fn text(x: usize, middle: usize, class: &str, text: &str) -> String {
    if text.is_empty() {
        return String::new();
    }
    format!("<text x=\"{x}\" y=\"{}\" class=\"{class}\">{}</text>\n", middle + 4, escape(text))
}

/// What an XML text may contain.
fn escape(text: &str) -> String {
    let escaped = text.chars().map(|character| match character {
        '&' => "&amp;".into(),
        '<' => "&lt;".into(),
        '>' => "&gt;".into(),
        '"' => "&quot;".into(),
        '\'' => "&apos;".into(),
        character if character.is_control() => " ".into(),
        character => character.to_string(),
    });
    escaped.collect()
}
