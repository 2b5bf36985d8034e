-- In the client: what belongs to the frame that is being drawn.
core.register_globalstep(function()
    local player, camera = core.localplayer, core.camera
    if not (player and camera) then return end
    local at = player:get_pos()
    core.log("action", ("EYE %.5f %.5f %.4f %.4f %.4f %d"):format(
        math.deg(camera:get_look_horizontal()), math.deg(camera:get_look_vertical()), at.x, at.y, at.z,
        player:get_wield_index()))
end)
