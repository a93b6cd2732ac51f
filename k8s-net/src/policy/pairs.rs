//! Profiles, classes, and what they allow each other. Pure.
//!
//! A profile is all that one pod's policies allow for one direction; pods of which policies say the same
//! share one. A class is a set of peers that no policy tells apart: pods by the groups (selectors) that they
//! are in, other addresses by the blocks that they are in. What a profile allows a class is one number of a
//! port set. So a packet costs a fixed number of lookups, and a pod that becomes or stops being a peer one
//! element.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{
    elements::{Elements, Key},
    parse::Direction,
    ports::{NamedPort, PortSet, Ports},
};

/// Number of a selector of peers.
pub(crate) type GroupId = u32;
/// Number of an address block.
pub(crate) type BlockId = u32;

/// All that the policies of a pod allow for a direction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Profile {
    pub(crate) any: PortSet,
    pub(crate) groups: BTreeMap<GroupId, Ports>,
    pub(crate) blocks: BTreeMap<BlockId, PortSet>,
}

/// Peers that no policy tells apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Class {
    /// Pods in these groups, with these named ports.
    Pods(Vec<GroupId>, Vec<NamedPort>),
    /// Addresses in these blocks.
    Blocks(Vec<BlockId>),
}

/// A selector or block that both profiles and classes have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Link {
    Group(GroupId),
    Block(BlockId),
}

#[derive(Debug)]
struct ProfileState {
    content: (Direction, Profile),
    users: usize,
    any: Option<u32>,
    /// Class to port set.
    allows: HashMap<u32, u32>,
}

#[derive(Debug)]
struct ClassState {
    content: Class,
    users: usize,
}

/// Numbers of profiles, classes and port sets. No number is used twice.
#[derive(Debug, Default)]
pub(crate) struct Pairs {
    last: u32,
    profiles: HashMap<(Direction, Profile), u32>,
    profile_states: HashMap<u32, ProfileState>,
    classes: HashMap<Class, u32>,
    class_states: HashMap<u32, ClassState>,
    ports: HashMap<PortSet, (u32, usize)>,
    port_sets: HashMap<u32, PortSet>,
    profiles_with: HashMap<Link, BTreeSet<u32>>,
    classes_with: HashMap<Link, BTreeSet<u32>>,
}

impl Profile {
    fn links(&self) -> impl Iterator<Item = Link> {
        let groups = self.groups.keys().map(|group| Link::Group(*group));
        groups.chain(self.blocks.keys().map(|block| Link::Block(*block)))
    }

    /// Returns what is allowed to or from a class, beside what everyone may.
    fn allows(&self, class: &Class) -> PortSet {
        let mut all = PortSet::default();
        match class {
            Class::Pods(groups, named) => {
                for ports in groups.iter().filter_map(|group| self.groups.get(group)) {
                    all.extend(&ports.resolve(named));
                }
            }
            Class::Blocks(blocks) => {
                for ports in blocks.iter().filter_map(|block| self.blocks.get(block)) {
                    all.extend(ports);
                }
            }
        }
        all
    }
}

impl Class {
    fn links(&self) -> Vec<Link> {
        match self {
            Class::Pods(groups, _) => groups.iter().map(|group| Link::Group(*group)).collect(),
            Class::Blocks(blocks) => blocks.iter().map(|block| Link::Block(*block)).collect(),
        }
    }
}

fn linked(index: &HashMap<Link, BTreeSet<u32>>, links: impl IntoIterator<Item = Link>) -> BTreeSet<u32> {
    links.into_iter().filter_map(|link| index.get(&link)).flatten().copied().collect()
}

fn unlink(index: &mut HashMap<Link, BTreeSet<u32>>, links: impl IntoIterator<Item = Link>, id: u32) {
    for link in links {
        if let Some(ids) = index.get_mut(&link) {
            ids.remove(&id);
            if ids.is_empty() {
                index.remove(&link);
            }
        }
    }
}

impl Pairs {
    pub(crate) fn next(&mut self) -> u32 {
        self.last += 1;
        self.last
    }

    fn take_ports(&mut self, set: PortSet, elements: &mut Elements) -> u32 {
        if let Some((id, users)) = self.ports.get_mut(&set) {
            *users += 1;
            return *id;
        }
        let id = self.next();
        elements.put_ports(id, &set, true);
        self.port_sets.insert(id, set.clone());
        self.ports.insert(set, (id, 1));
        id
    }

    fn drop_ports(&mut self, id: u32, elements: &mut Elements) {
        let Some(set) = self.port_sets.get(&id).cloned() else { return };
        let Some((_, users)) = self.ports.get_mut(&set) else { return };
        *users -= 1;
        if *users == 0 {
            self.ports.remove(&set);
            self.port_sets.remove(&id);
            elements.put_ports(id, &set, false);
        }
    }

    /// Returns the number of a profile, which has one user more then.
    pub(crate) fn take_profile(&mut self, direction: Direction, profile: Profile, e: &mut Elements) -> u32 {
        let content = (direction, profile);
        if let Some(id) = self.profiles.get(&content).copied() {
            if let Some(state) = self.profile_states.get_mut(&id) {
                state.users += 1;
            }
            return id;
        }
        let id = self.next();
        let profile = &content.1;
        let any = (!profile.any.is_empty()).then(|| self.take_ports(profile.any.clone(), e));
        e.put(Key::Any(id), any);
        for link in profile.links() {
            self.profiles_with.entry(link).or_default().insert(id);
        }
        let mut allows = HashMap::new();
        for class in linked(&self.classes_with, profile.links()) {
            let Some(state) = self.class_states.get(&class) else { continue };
            let set = profile.allows(&state.content);
            if !set.is_empty() {
                let ports = self.take_ports(set, e);
                e.put(Key::Allow(id, class), Some(ports));
                allows.insert(class, ports);
            }
        }
        self.profiles.insert(content.clone(), id);
        self.profile_states.insert(id, ProfileState { content, users: 1, any, allows });
        id
    }

    /// Takes a user from a profile; without any it is removed.
    pub(crate) fn drop_profile(&mut self, id: u32, e: &mut Elements) {
        match self.profile_states.get_mut(&id) {
            Some(state) if state.users > 1 => return state.users -= 1,
            _ => {}
        }
        let Some(state) = self.profile_states.remove(&id) else { return };
        self.profiles.remove(&state.content);
        unlink(&mut self.profiles_with, state.content.1.links(), id);
        e.put(Key::Any(id), None);
        for class in state.allows.keys() {
            e.put(Key::Allow(id, *class), None);
        }
        for ports in state.any.into_iter().chain(state.allows.into_values()) {
            self.drop_ports(ports, e);
        }
    }

    /// Returns the number of a class, which has one user more then.
    pub(crate) fn take_class(&mut self, content: Class, e: &mut Elements) -> u32 {
        if let Some(id) = self.classes.get(&content).copied() {
            if let Some(state) = self.class_states.get_mut(&id) {
                state.users += 1;
            }
            return id;
        }
        let id = self.next();
        let links = content.links();
        for profile in linked(&self.profiles_with, links.iter().copied()) {
            let Some(state) = self.profile_states.get(&profile) else { continue };
            let set = state.content.1.allows(&content);
            if set.is_empty() {
                continue;
            }
            let ports = self.take_ports(set, e);
            e.put(Key::Allow(profile, id), Some(ports));
            if let Some(state) = self.profile_states.get_mut(&profile) {
                state.allows.insert(id, ports);
            }
        }
        for link in links {
            self.classes_with.entry(link).or_default().insert(id);
        }
        self.classes.insert(content.clone(), id);
        self.class_states.insert(id, ClassState { content, users: 1 });
        id
    }

    /// Takes a user from a class; without any it is removed.
    pub(crate) fn drop_class(&mut self, id: u32, e: &mut Elements) {
        match self.class_states.get_mut(&id) {
            Some(state) if state.users > 1 => return state.users -= 1,
            _ => {}
        }
        let Some(state) = self.class_states.remove(&id) else { return };
        self.classes.remove(&state.content);
        let links = state.content.links();
        unlink(&mut self.classes_with, links.iter().copied(), id);
        for profile in linked(&self.profiles_with, links) {
            let allowed = self.profile_states.get_mut(&profile).and_then(|p| p.allows.remove(&id));
            if let Some(ports) = allowed {
                e.put(Key::Allow(profile, id), None);
                self.drop_ports(ports, e);
            }
        }
    }
}
