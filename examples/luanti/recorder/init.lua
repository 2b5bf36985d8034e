-- In the server: rules near to those of Minecraft, and a line of JSON whenever what the player has or did changes.

local NAMES = {  -- of the game's things, as Minecraft calls them
    tree = "oak_log", jungletree = "jungle_log", pine_tree = "spruce_log", acacia_tree = "acacia_log",
    aspen_tree = "birch_log", wood = "oak_planks", junglewood = "jungle_planks", pine_wood = "spruce_planks",
    acacia_wood = "acacia_planks", aspen_wood = "birch_planks", cobble = "cobblestone", stone_with_coal = "coal_ore",
    stone_with_iron = "iron_ore", stone_with_diamond = "diamond_ore", coal_lump = "coal", iron_lump = "raw_iron",
    steel_ingot = "iron_ingot", pick_wood = "wooden_pickaxe", pick_stone = "stone_pickaxe", pick_steel = "iron_pickaxe",
    dirt_with_grass = "grass_block",
}
local stats, ready = {}, false

local function named(item)
    local name = item:match(":(.*)$") or item
    return NAMES[name] or name
end

local function count(kind, item, amount)
    local key = "minecraft." .. kind .. ":minecraft." .. item
    stats[key] = (stats[key] or 0) + (amount or 1)
end

-- Ores at any depth below the ground, more than in nature.
minetest.clear_registered_ores()
for ore, scarcity in pairs({coal = 6, iron = 7, diamond = 10}) do
    minetest.register_ore({
        ore_type = "scatter", ore = "default:stone_with_" .. ore, wherein = "default:stone",
        clust_scarcity = scarcity ^ 3, clust_num_ores = 5, clust_size = 3, y_min = -200, y_max = 60,
    })
end

-- Windows of 16 x 9 units over the whole screen; the shade of grey tells the recorder which one is open.
local function window(shade, top)
    return "formspec_version[4]size[16,9]padding[0,0]no_prepend[]bgcolor[#00000000;false]" ..
        "box[2.4,0.25;11.2,8.5;#" .. shade .. "]" .. top ..
        "list[current_player;main;2.5,3.9;9,4;]listring[]"
end
local GRID = "list[current_player;craft;4,0.3;%d,%d;]list[current_player;craftpreview;9,1;1,1;]"
local INVENTORY = window("c6c6c6ff", GRID:format(2, 2))

minetest.register_node("recorder:crafting_table", {
    description = "Crafting table", groups = {choppy = 2, oddly_breakable_by_hand = 2},
    tiles = {"default_wood.png^default_tool_stonepick.png", "default_wood.png", "default_wood.png^default_tool_stoneaxe.png"},
    on_rightclick = function(_, _, player)
        count("custom", "interact_with_crafting_table")
        player:get_inventory():set_width("craft", 3)
        minetest.show_formspec(player:get_player_name(), "recorder:table", window("c5c6c6ff", GRID:format(3, 3)))
    end,
})

local function smelt(pos)
    local inventory = minetest.get_meta(pos):get_inventory()
    local meta = minetest.get_meta(pos)
    local cooked, left = minetest.get_craft_result(
        {method = "cooking", width = 1, items = {inventory:get_stack("src", 1)}})
    if cooked.time == 0 or not inventory:room_for_item("dst", cooked.item) then return true end
    if meta:get_int("heat") == 0 then
        local fuel, rest = minetest.get_craft_result(
            {method = "fuel", width = 1, items = {inventory:get_stack("fuel", 1)}})
        if fuel.time == 0 then return true end
        inventory:set_stack("fuel", 1, rest.items[1])
        meta:set_int("heat", math.max(1, math.floor(fuel.time / 4)))
    end
    meta:set_int("heat", meta:get_int("heat") - 1)
    inventory:set_stack("src", 1, left.items[1])
    inventory:add_item("dst", cooked.item)
    return true
end

minetest.register_node("recorder:furnace", {
    description = "Furnace", groups = {cracky = 2}, paramtype2 = "facedir",
    tiles = {"default_furnace_top.png", "default_furnace_bottom.png", "default_furnace_side.png",
        "default_furnace_side.png", "default_furnace_side.png", "default_furnace_front.png"},
    on_construct = function(pos)
        local inventory = minetest.get_meta(pos):get_inventory()
        for _, list in ipairs({"src", "fuel", "dst"}) do inventory:set_size(list, 1) end
        minetest.get_node_timer(pos):start(1)
    end,
    on_timer = smelt,
    on_rightclick = function(pos, _, player)
        local list = ("list[nodemeta:%d,%d,%d;"):format(pos.x, pos.y, pos.z)
        count("custom", "interact_with_furnace")
        minetest.show_formspec(player:get_player_name(), "recorder:furnace", window("c4c6c6ff",
            list .. "src;5,0.4;1,1;]" .. list .. "fuel;5,2.4;1,1;]" .. list .. "dst;9,1.4;1,1;]"))
    end,
})

minetest.register_craft({output = "recorder:crafting_table", recipe = {{"group:wood", "group:wood"}, {"group:wood", "group:wood"}}})
local c = "default:cobble"
minetest.clear_craft({output = "default:furnace"})
minetest.register_craft({output = "recorder:furnace", recipe = {{c, c, c}, {c, "", c}, {c, c, c}}})

minetest.register_on_craft(function(stack) count("craft_item", named(stack:get_name()), stack:get_count()) end)
minetest.register_on_placenode(function(_, node) count("use_item", named(node.name)) end)
minetest.register_on_dignode(function(_, node, player)
    local tool = player and player:get_wielded_item():get_name() or ""
    count("mine_block", named(node.name))
    if tool:find("pick_", 1, true) then count("use_item", named(tool)) end
end)
minetest.register_on_player_inventory_action(function(_, action, _, info)
    if action == "put" and info.stack:get_name() == "default:steel_ingot" then
        count("craft_item", "iron_ingot", info.stack:get_count())
    end
end)
minetest.register_on_player_receive_fields(function(player, _, fields)
    if fields.quit then player:get_inventory():set_width("craft", 2) end
end)

-- Begins where trees grow, by day.
minetest.register_on_joinplayer(function(player)
    local inventory, random = player:get_inventory(), PcgRandom(tonumber(minetest.settings:get("fixed_map_seed")))
    inventory:set_size("main", 36)
    inventory:set_size("craft", 9)
    inventory:set_width("craft", 2)
    player:hud_set_hotbar_itemcount(9)
    player:set_inventory_formspec(INVENTORY)
    minetest.set_timeofday(random:next(30, 50) / 100)
    local x, z
    for _ = 1, 500 do
        x, z = random:next(-3000, 3000), random:next(-3000, 3000)
        local biome = minetest.get_biome_name(minetest.get_biome_data({x = x, y = 10, z = z}).biome)
        if biome == "deciduous_forest" or biome == "coniferous_forest" then break end
    end
    minetest.emerge_area({x = x, y = 0, z = z}, {x = x, y = 60, z = z}, function(_, _, left)
        if left > 0 then return end
        for y = 60, 0, -1 do
            if minetest.get_item_group(minetest.get_node({x = x, y = y, z = z}).name, "soil") > 0 then
                player:set_pos({x = x, y = y + 1, z = z})
                ready = true
                return
            end
        end
    end)
end)

-- The nearest node of those that the recorder asks for, by a file, at a height that can be reached.
local asked, target = 0, nil
local function look_for(at)
    local file = io.open(minetest.get_worldpath() .. "/wanted", "r")
    local wanted = file and file:read("*a"):split(",") or {}
    if file then file:close() end
    if wanted[#wanted] ~= "end" or tonumber(wanted[1]) == asked then return end
    asked, target = tonumber(table.remove(wanted, 1)), nil
    local reach, least = tonumber(table.remove(wanted, 1)), math.huge
    table.remove(wanted)
    local low, high = vector.offset(at, -reach, -math.min(reach, 20), -reach), vector.offset(at, reach, 3.5, reach)
    for _, pos in ipairs(minetest.find_nodes_in_area(low, high, wanted)) do
        local far = vector.distance(at, pos) + 2 * math.abs(pos.y - at.y)
        if far < least then target, least = {pos.x, pos.y, pos.z}, far end
    end
end

local told = ""
minetest.register_globalstep(function()
    local player = minetest.get_connected_players()[1]
    if not player then return end
    local at, eye, things, solid = player:get_pos(), player:get_pos(), {}, {}
    look_for(at)
    player:set_physics_override({speed = player:get_player_control().aux1 and 1.3 or 1})
    for slot, stack in ipairs(player:get_inventory():get_list("main")) do
        if not stack:is_empty() then things[tostring(slot)] = {named(stack:get_name()), stack:get_count()} end
    end
    eye.y = eye.y + player:get_properties().eye_height
    local hit = minetest.raycast(eye, vector.add(eye, vector.multiply(player:get_look_dir(), 4)), false, false)()
    local foot = vector.round(vector.offset(at, 0, 0.1, 0))
    for y = -2, 3 do for x = -1, 1 do for z = -1, 1 do
        local kind = minetest.registered_nodes[minetest.get_node(vector.offset(foot, x, y, z)).name]
        solid[#solid + 1] = (not kind or kind.walkable) and "1" or "0"
    end end end
    local line = minetest.write_json({
        ready = ready, stats = stats, things = things, asked = asked, target = target,
        solid = table.concat(solid), foot = {foot.x, foot.y, foot.z},
        pointed = hit and {hit.under.x, hit.under.y, hit.under.z, named(minetest.get_node(hit.under).name)} or nil,
    })
    if line ~= told then told = line minetest.log("action", "STATE " .. line) end
end)
